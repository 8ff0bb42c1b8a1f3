//! Subject filters as NATS has them. Pure.

/// The narrowest filter that matches what any of these match.
pub fn cover(filters: &[String]) -> Option<String> {
    let (first, rest) = filters.split_first()?;
    Some(rest.iter().fold(first.clone(), |cover, filter| cover_two(&cover, filter)))
}

fn cover_two(a: &str, b: &str) -> String {
    let (mut left, mut right) = (a.split('.'), b.split('.'));
    let mut tokens = Vec::new();
    loop {
        match (left.next(), right.next()) {
            (None, None) => break,
            (Some(a), Some(b)) if a != ">" && b != ">" => tokens.push(if a == b { a } else { "*" }),
            (Some(_), Some(_)) => {
                tokens.push(">");
                break;
            }
            _ => {
                // One ends here: its last token must be part of what `>` stands for.
                tokens.pop();
                tokens.push(">");
                break;
            }
        }
    }
    tokens.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use cratemill_protocol::topic::Topic;

    #[test]
    fn a_cover_is_as_narrow_as_a_filter_can_be() {
        for (topics, expected) in [
            (vec!["queue"], "event.queue"),
            (vec!["job.7", "job.8"], "event.job.*.*"),
            (vec!["job.7", "builds"], "event.job.>"),
            (vec!["crate.a", "crate.b"], "event.*.*.>"),
            (vec!["builds", "builders"], "event.*.>"),
            (vec!["builds", "queue"], "event.>"),
            (vec!["topic.a.b"], "topic.a.b"),
            (vec!["topic.a", "topic.b"], "topic.*"),
            (vec!["topic.a", "topic.b.c"], "topic.>"),
        ] {
            let filters: Vec<_> =
                topics.iter().map(|topic| topic.parse::<Topic>().unwrap().source().1).collect();
            assert_eq!(cover(&filters).unwrap(), expected, "{topics:?}");
        }
        assert_eq!(cover(&[]), None);
    }
}
