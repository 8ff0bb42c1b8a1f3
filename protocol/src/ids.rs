//! One newtype per id that could be swapped with another.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident($inner:ty)),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$inner> for $name {
            fn from(inner: $inner) -> Self {
                Self(inner)
            }
        }

        impl FromStr for $name {
            type Err = <$inner as FromStr>::Err;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    )+};
}

id! {
    /// A row of `crates`.
    CrateId(i64),
    /// A row of `versions`.
    VersionId(i64),
    /// One version x kind x target x feature variant that is to be built once.
    JobId(i64),
    /// The number of a try at a job, from 1. Every write about a job carries it: it fences.
    Attempt(i32),
    /// A row of `builders`.
    BuilderId(i64),
    /// A row of `artifacts`.
    ArtifactId(i64),
    /// Who signed up with the event API.
    UserId(Uuid),
    /// An event of the event API.
    EventId(Uuid),
    /// What events of the event API belong to, as their authors say.
    CollectionId(Uuid),
    /// What people publish to and subscribe to over CBOR.
    SubscriptionId(Uuid),
}
