//! The wire formats, held still: golden files in both encodings and both directions, and what decoders do with rubbish.

// A helper of a test may fail it as the test itself may.
#![allow(clippy::unwrap_used)]

mod builder;
mod bus;
mod golden;
mod interop;
mod rubbish;
