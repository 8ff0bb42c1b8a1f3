//! Which version `latest` is: the highest release that is neither yanked nor blocked; without one, the highest such
//! pre-release. Whether it is built already does not matter: `latest` must not move back and forth with the queue.

use cratemill_store::versions::Version;
use semver::Version as Semver;

pub(crate) const LATEST: &str = "latest";

pub(crate) fn latest(versions: &[Version]) -> Option<&Version> {
    versions
        .iter()
        .filter(|version| !version.yanked && !version.blocked)
        .filter_map(|version| Some((Semver::parse(&version.version).ok()?, version)))
        .max_by(|(a, _), (b, _)| (a.pre.is_empty(), a).cmp(&(b.pre.is_empty(), b)))
        .map(|(_, version)| version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cratemill_protocol::{Sha256Hex, VersionId};

    fn version(text: &str) -> Version {
        let (yanked, blocked) = (text.contains('y'), text.contains('x'));
        Version {
            id: VersionId(1),
            krate: "demo".parse().unwrap(),
            version: text.trim_end_matches(['x', 'y']).into(),
            sha256: Sha256Hex::of(b""),
            yanked,
            blocked,
            seen_at: time::OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn releases_go_first_by_number_not_by_age() {
        for (versions, expected) in [
            (&["0.9.0", "0.10.0", "0.2.0"][..], Some("0.10.0")),
            (&["1.0.0", "2.0.0-rc.1"], Some("1.0.0")),
            (&["2.0.0-rc.1", "2.0.0-rc.2"], Some("2.0.0-rc.2")),
            (&["1.0.0", "1.1.0y", "1.2.0x"], Some("1.0.0")),
            (&["1.0.0y"], None),
            (&["not-semver"], None),
            (&[], None),
        ] {
            let versions: Vec<_> = versions.iter().map(|text| version(text)).collect();
            assert_eq!(latest(&versions).map(|v| v.version.as_str()), expected);
        }
    }
}
