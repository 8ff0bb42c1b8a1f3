//! What a server answers, read as far as a bench needs it: the status, whether a redirect leads anywhere, and where the
//! answer ends. Pure.

/// A header line and all of its answer's head end so.
const LINE_END: &[u8] = b"\r\n";
const HEAD_END: &[u8] = b"\r\n\r\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    /// It has a Location that is not empty.
    pub(super) leads: bool,
    /// The server closes the connection after it.
    pub(super) closes: bool,
    /// Bytes of the head, and of the body behind it.
    pub(super) length: usize,
    pub(super) body: usize,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an answer that is no HTTP/1.1 of known length: {0}")]
pub(super) struct Malformed(String);

/// The head at the beginning of what was received; none while it is not complete.
pub(super) fn parse(received: &[u8]) -> Result<Option<Head>, Malformed> {
    let Some(length) = find(received, HEAD_END) else { return Ok(None) };
    let (mut rest, length) = (&received[..length + LINE_END.len()], length + HEAD_END.len());
    let malformed = |line: &[u8]| Malformed(line.escape_ascii().to_string());
    let status = next_line(&mut rest).unwrap_or_default();
    let mut head = Head {
        status: parse_status(status).ok_or_else(|| malformed(status))?,
        leads: false,
        closes: false,
        length,
        body: 0,
    };
    while let Some(line) = next_line(&mut rest) {
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(|| malformed(line))?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"location") {
            head.leads = !value.is_empty();
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            head.body = number.ok_or_else(|| malformed(line))?;
        } else if name.eq_ignore_ascii_case(b"connection") {
            head.closes = value.eq_ignore_ascii_case(b"close");
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            return Err(malformed(line));
        }
    }
    Ok(Some(head))
}

/// Of each header of a head its name and value, for whoever wants to answer the same.
pub(super) fn headers(head: &str) -> impl Iterator<Item = (&str, &str)> {
    head.split("\r\n").skip(1).filter_map(|line| line.split_once(": "))
}

fn parse_status(line: &[u8]) -> Option<u16> {
    let code = line.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    std::str::from_utf8(code).ok()?.parse().ok()
}

fn next_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = find(rest, LINE_END)?;
    let line = &rest[..end];
    *rest = &rest[end + LINE_END.len()..];
    Some(line)
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_when_its_head_is_complete() {
        let answer =
            b"HTTP/1.1 302 Found\r\nLOCATION: http://s3/x\r\ncontent-length: 3\r\n\r\nabcHTTP/1.1 200";
        let end = answer.len() - 15;
        for cut in 0..end {
            assert_eq!(parse(&answer[..cut]), Ok(None), "{cut}");
        }
        let head = Head { status: 302, leads: true, closes: false, length: end, body: 3 };
        assert_eq!(parse(&answer[..end]), Ok(Some(head)));
        assert_eq!(parse(answer), Ok(Some(head)));
        let text = std::str::from_utf8(&answer[..end]).unwrap();
        assert_eq!(headers(text).last(), Some(("content-length", "3")));
    }

    #[test]
    fn what_has_no_location_leads_nowhere_and_a_last_answer_is_one() {
        let head = parse(b"HTTP/1.1 503 x\r\nlocation: \r\nConnection: close\r\n\r\n").unwrap().unwrap();
        assert_eq!((head.status, head.leads, head.closes, head.body), (503, false, true, 0));
        assert!(!parse(b"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\n\r\n").unwrap().unwrap().closes);
    }

    #[test]
    fn what_has_no_known_length_is_refused() {
        for bad in [
            &b"HTTP/2 200 OK\r\n\r\n"[..],
            b"\r\n\r\n",
            b"HTTP/1.1 2x0 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        ] {
            assert!(parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }
}
