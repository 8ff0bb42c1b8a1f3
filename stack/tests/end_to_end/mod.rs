mod build;
mod events;
mod failures;
mod operations;
mod peer;
mod scene;
mod sessions;
mod uploads;
