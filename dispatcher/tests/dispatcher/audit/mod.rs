//! The audit over a small world in which all is well, and over each kind of damage to it: exactly the check that is
//! meant for it must find it.

mod artifacts;
mod logs;
mod rest;
mod rows;
mod world;
