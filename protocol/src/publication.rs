//! Ids of publications: each says where it stands in the stream, so that it is found without an index.
//!
//! ```text
//! 48 bits: sequence | 4: version 8 | 12: nonce | 2: variant | 62: nonce
//! ```
//! The nonce is that of the message's own id, which its publisher drew: nobody else can make up an id that is right, and
//! one of a stream that was lost does not fit what stands at its place now.

use std::{fmt, str::FromStr};
use uuid::Uuid;

const SEQUENCE_BITS: u32 = 48;

/// The id of a message in the stream, by which it is known however often it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nonce(pub u128);

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Nonce {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

/// The id of the publication at this place of the stream.
pub fn id(sequence: u64, Nonce(nonce): Nonce) -> Uuid {
    let bits = (u128::from(sequence) << (128 - SEQUENCE_BITS)) | (nonce & (u128::MAX >> SEQUENCE_BITS));
    uuid::Builder::from_custom_bytes(bits.to_be_bytes()).into_uuid()
}

/// The place that an id names; whether the id is right its message says.
pub fn sequence(id: Uuid) -> u64 {
    u64::try_from(id.as_u128() >> (128 - SEQUENCE_BITS)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_names_its_place_and_its_message(
            sequence in 0_u64..1 << SEQUENCE_BITS, nonce: u128, other: u128,
        ) {
            let this = id(sequence, Nonce(nonce));
            prop_assert_eq!(super::sequence(this), sequence);
            prop_assert_eq!(this.get_version_num(), 8);
            prop_assert_eq!(Nonce(nonce).to_string().parse(), Ok(Nonce(nonce)));
            prop_assert_ne!(this, id(sequence, Nonce(other)));
            prop_assert!(id(sequence + 1, Nonce(other)) > this, "in the order of the stream");
        }
    }

    #[test]
    fn golden() {
        let id = id(0x0102_0304_0506, Nonce(0xffff_ffff_ffff_ffff_ffff_ffff));
        assert_eq!(id.to_string(), "01020304-0506-8fff-bfff-ffffffffffff");
    }
}
