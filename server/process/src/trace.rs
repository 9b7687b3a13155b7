//! W3C Trace Context (<https://www.w3.org/TR/trace-context-2/>), as the server and its gateway read it.

use axum::http::header::{HeaderMap, HeaderName};

/// The header with the trace and the caller's span.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The header with what other tracing systems add.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The most members of a `tracestate`, and the longest key and value of one (sections 3.3.1.1 to 3.3.1.3.2).
const MOST_MEMBERS: usize = 32;
const MOST_TEXT: usize = 256;

/// The trace that a request belongs to, and the caller's span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The caller's span.
    pub parent_id: [u8; 8],
    /// Whether the caller recorded its span.
    pub sampled: bool,
    /// Whether the last 7 bytes of the trace are random.
    pub random: bool,
    /// The `tracestate`, if it is valid and has members.
    pub state: Option<String>,
}

impl TraceContext {
    /// The context of a request. `None` without `traceparent`, with two, and with an invalid one: its `tracestate` is
    /// then not read either.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let (first, second) = (values.next()?, values.next());
        let (trace_id, parent_id, flags) = parse(first.to_str().ok()?).filter(|_| second.is_none())?;
        let (sampled, random) = (flags & 1 == 1, flags & 2 == 2);
        Some(Self { trace_id, parent_id, sampled, random, state: state(headers) })
    }
}

/// Trace, span and flags of a `traceparent`. Later versions may add fields.
fn parse(text: &str) -> Option<([u8; 16], [u8; 8], u8)> {
    let mut fields = text.splitn(5, '-');
    let [version] = bytes(fields.next()?)?;
    let (trace_id, parent_id) = (bytes(fields.next()?)?, bytes(fields.next()?)?);
    let [flags] = bytes(fields.next()?)?;
    let is_known = version != 0xff && (version != 0 || fields.next().is_none());
    (is_known && trace_id != [0; 16] && parent_id != [0; 8]).then_some((trace_id, parent_id, flags))
}

/// Lower-case hexadecimal digits, and no others.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let is_hex = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
    if text.len() != 2 * N || !text.bytes().all(is_hex) {
        return None;
    }
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// All `tracestate` headers as one list, which may have empty members and repeat keys: who forwards it may keep both.
fn state(headers: &HeaderMap) -> Option<String> {
    let values = headers.get_all(TRACESTATE).iter().map(|value| value.to_str().ok());
    let joined = values.collect::<Option<Vec<_>>>()?.join(",");
    let members = joined.split(',').map(|member| member.trim_matches([' ', '\t'])).filter(|member| !member.is_empty());
    let mut count = 0;
    for member in members {
        let (key, value) = member.split_once('=')?;
        if !is_key(key) || !is_value(value) || count == MOST_MEMBERS {
            return None;
        }
        count += 1;
    }
    (count > 0).then_some(joined)
}

fn is_key(key: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=MOST_TEXT).contains(&key.len())
        && key.bytes().next().is_some_and(is_plain)
        && key.bytes().all(|byte| is_plain(byte) || b"_-*/@".contains(&byte))
}

fn is_value(value: &str) -> bool {
    (1..=MOST_TEXT).contains(&value.len()) && value.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=')
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn of(parents: &[&str], states: &[&str]) -> Option<TraceContext> {
        let parents = parents.iter().map(|value| (TRACEPARENT, HeaderValue::from_str(value).unwrap()));
        let states = states.iter().map(|value| (TRACESTATE, HeaderValue::from_str(value).unwrap()));
        let mut headers = HeaderMap::new();
        for (name, value) in parents.chain(states) {
            headers.append(name, value);
        }
        TraceContext::of(&headers)
    }

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn valid_trace_parent_has_its_ids_and_flag() {
        let context = of(&[VALID], &[]).unwrap();
        assert_eq!((context.trace_id[0], context.trace_id[15]), (0x4b, 0x36));
        assert_eq!(context.parent_id, [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
        assert_eq!((context.sampled, context.state), (true, None));
        // Unknown flags are ignored, and a later version may have more fields.
        for (last, sampled, random) in
            [("00", false, false), ("01", true, false), ("02", false, true), ("03", true, true), ("fc", false, false)]
        {
            let context = of(&[&format!("00-{TRACE}-00f067aa0ba902b7-{last}")], &[]).unwrap();
            assert_eq!((context.sampled, context.random), (sampled, random), "{last}");
        }
        assert!(of(&[&format!("cc-{TRACE}-00f067aa0ba902b7-01-later")], &[]).is_some());
    }

    #[test]
    fn invalid_and_repeated_trace_parents_are_no_context() {
        for wrong in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47+6-00f067aa0ba902b7-01",
        ] {
            assert_eq!(of(&[wrong], &["a=b"]), None, "{wrong}");
        }
        assert_eq!(of(&[VALID, VALID], &[]), None);
        assert_eq!(of(&[], &["a=b"]), None);
    }

    #[test]
    fn invalid_trace_states_are_left_out_whole() {
        let state = |states: &[&str]| of(&[VALID], states).unwrap().state;
        assert_eq!(state(&["a=1", "b@c=2 3 , ,"]).as_deref(), Some("a=1,b@c=2 3 , ,"));
        assert_eq!(state(&["0*/-_=~"]).as_deref(), Some("0*/-_=~"));
        let long = format!("a={}", "x".repeat(MOST_TEXT + 1));
        let many: Vec<String> = (0..=MOST_MEMBERS).map(|n| format!("k{n}=v")).collect();
        let many = [many.join(","), many[1..].join(",")];
        for wrong in ["", " ", ",", "a", "a=", "=1", "A=1", "a=1=2", "a b=1", long.as_str(), many[0].as_str()] {
            assert_eq!(state(&[wrong]), None, "{wrong}");
        }
        assert!(state(&[&many[1]]).is_some());
        // https://github.com/w3c/trace-context, `test_tracestate_duplicated_keys`.
        assert_eq!(state(&["a=1,a=1"]).as_deref(), Some("a=1,a=1"));
        assert_eq!(state(&["a=1", "a=2"]).as_deref(), Some("a=1,a=2"));
    }
}
