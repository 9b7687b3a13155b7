//! Finds values of personal data in a text. Each attempt reads a bounded number of bytes, so that the time is linear in the text.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::{Range, RangeInclusive};

use crate::config::PiiKind;

/// The longest local part and label of an e-mail address, and its longest domain (RFC 5321).
const MAX_LOCAL: usize = 64;
const MAX_LABEL: usize = 63;
const MAX_DOMAIN: usize = 253;
/// The digits of a payment card.
const CARD_DIGITS: RangeInclusive<usize> = 13..=19;
/// The digits of a telephone number: E.164 has at most 15.
const PHONE_DIGITS: RangeInclusive<usize> = 8..=15;
/// The digits of a telephone number after which a space ends it.
const WHOLE_PHONE_DIGITS: usize = 10;
/// The longest text of an IP address.
const MAX_IP: usize = 45;
/// Addresses of IPv6 that are shorter, such as `a::b` and `list[1000::2]`, are more often something else.
const MIN_IPV6_DIGITS: usize = 6;
/// The longest IBAN.
const MAX_IBAN: usize = 34;

/// The length of the IBANs of each country, four letters for each: the registry of ISO 13616 that SWIFT publishes.
const IBAN_LENGTHS: &[u8] = b"\
    AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29\
    ES24FI18FK18FO18FR27GB22GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20\
    LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22MK19MN20MR27MT31MU30NI28NL18NO15OM23PK24PL28PS29\
    PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28TL23TN24TR26UA29VA22VG24XK20\
    YE30";

/// Gives the place of each value of these kinds to `found`, in their order and without overlaps. A value begins where no letter or
/// digit of ASCII is before it, and ends before none.
pub(super) fn find(text: &str, kinds: &[PiiKind], mut found: impl FnMut(Range<usize>, PiiKind)) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let begins = bytes[at].is_ascii_alphanumeric() || matches!(bytes[at], b'+' | b':');
        let begins = begins && !is_escape(bytes, at);
        let is_inside = at > 0 && bytes[at - 1].is_ascii_alphanumeric() && !is_escape(bytes, at - 1);
        let value = match begins && !is_inside {
            true => kinds.iter().find_map(|kind| Some((end(*kind, bytes, at)?, *kind))),
            false => None,
        };
        match value {
            Some((end, kind)) => {
                found(at..end, kind);
                at = end;
            }
            None => at += 1,
        }
    }
}

/// Whether this is the letter of an escape of JSON, such as `\n`.
fn is_escape(bytes: &[u8], at: usize) -> bool {
    at > 0 && bytes[at - 1] == b'\\' && b"nrtbf".contains(&bytes[at])
}

/// The end of a value of a kind that begins at this byte.
fn end(kind: PiiKind, bytes: &[u8], at: usize) -> Option<usize> {
    match kind {
        PiiKind::Email => email(bytes, at),
        PiiKind::Iban => iban(bytes, at),
        PiiKind::Card => card(bytes, at),
        PiiKind::Phone => phone(bytes, at),
        PiiKind::Ssn => ssn(bytes, at),
        PiiKind::Ip => ip(bytes, at),
    }
}

/// Whether no letter or digit of ASCII follows.
fn is_end(bytes: &[u8], end: usize) -> bool {
    bytes.get(end).is_none_or(|byte| !byte.is_ascii_alphanumeric())
}

/// Whether this sign is here with a digit on the other side of it, away from the value.
fn continues(bytes: &[u8], sign: Option<usize>, digit: Option<usize>, signs: &[u8]) -> bool {
    let at = |place: Option<usize>| place.and_then(|place| bytes.get(place)).copied();
    at(sign).is_some_and(|byte| signs.contains(&byte)) && at(digit).is_some_and(|byte| byte.is_ascii_digit())
}

/// Whether a number goes on before a place: `1.` or `1-`.
fn continues_before(bytes: &[u8], at: usize, signs: &[u8]) -> bool {
    continues(bytes, at.checked_sub(1), at.checked_sub(2), signs)
}

/// Whether a number goes on after a place: `.1` or `-1`.
fn continues_after(bytes: &[u8], end: usize, signs: &[u8]) -> bool {
    continues(bytes, Some(end), end.checked_add(1), signs)
}

/// The number of digits from a place on, at most `most`.
fn digits(bytes: &[u8], at: usize, most: usize) -> usize {
    bytes.iter().skip(at).take(most).take_while(|byte| byte.is_ascii_digit()).count()
}

fn email(bytes: &[u8], at: usize) -> Option<usize> {
    let is_local = |byte: &u8| byte.is_ascii_alphanumeric() || b"._%+-".contains(byte);
    let local = bytes[at..].iter().take(MAX_LOCAL + 1).take_while(|byte| is_local(byte)).count();
    let sign = at + local;
    let is_address = bytes[at].is_ascii_alphanumeric() && local <= MAX_LOCAL && bytes.get(sign) == Some(&b'@');
    if !is_address || bytes[sign - 1] == b'.' || bytes[at..sign].windows(2).any(|two| two == b"..") {
        return None;
    }
    let (mut from, mut labels, mut end) = (sign + 1, 0, None);
    loop {
        let is_label = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
        let length = bytes.iter().skip(from).take(MAX_LABEL + 1).take_while(|byte| is_label(byte)).count();
        if length == 0 || length > MAX_LABEL || bytes[from] == b'-' || from + length - sign > MAX_DOMAIN {
            break;
        }
        let label = &bytes[from..from + length];
        let hyphens = label.iter().rev().take_while(|byte| **byte == b'-').count();
        let label = &label[..length - hyphens];
        labels += 1;
        // The last label is that of a top-level domain.
        if labels > 1 && label.len() > 1 && (label.iter().all(u8::is_ascii_alphabetic) || label.starts_with(b"xn--")) {
            end = Some(from + label.len());
        }
        from += length + 1;
        if hyphens > 0 || bytes.get(from - 1) != Some(&b'.') {
            break;
        }
    }
    end
}

fn iban(bytes: &[u8], at: usize) -> Option<usize> {
    let country = [bytes[at].to_ascii_uppercase(), bytes.get(at + 1)?.to_ascii_uppercase()];
    if digits(bytes, at + 2, 2) < 2 {
        return None;
    }
    let of_country = IBAN_LENGTHS.chunks_exact(4).find(|entry| entry[..2] == country)?;
    let length = of_country[2..].iter().fold(0, |length, digit| 10 * length + usize::from(digit - b'0'));
    let (mut letters, mut next) = ([0_u8; MAX_IBAN], at);
    for (count, letter) in letters.iter_mut().take(length).enumerate() {
        // On paper it has groups of four.
        if count > 0 && count % 4 == 0 && bytes.get(next) == Some(&b' ') {
            next += 1;
        }
        *letter = bytes.get(next).filter(|byte| byte.is_ascii_alphanumeric())?.to_ascii_uppercase();
        next += 1;
    }
    let (first, rest) = letters[..length].split_at(4);
    let remainder = rest.iter().chain(first).fold(0_u32, |remainder, letter| match letter {
        b'0'..=b'9' => (remainder * 10 + u32::from(letter - b'0')) % 97,
        _ => (remainder * 100 + u32::from(letter - b'A') + 10) % 97,
    });
    (remainder == 1 && is_end(bytes, next)).then_some(next)
}

fn card(bytes: &[u8], at: usize) -> Option<usize> {
    // The first digit is that of an industry: those of payment cards are 2 to 6.
    if !(b'2'..=b'6').contains(&bytes[at]) || continues_before(bytes, at, b".") {
        return None;
    }
    let most = *CARD_DIGITS.end();
    let mut number = Vec::with_capacity(most);
    let (mut next, mut separator, mut end) = (at, None::<u8>, None);
    loop {
        let group = digits(bytes, next, most + 1);
        if group == 0 || number.len() + group > most {
            break;
        }
        number.extend_from_slice(&bytes[next..next + group]);
        next += group;
        let is_whole = is_end(bytes, next) && !continues_after(bytes, next, b".");
        if CARD_DIGITS.contains(&number.len()) && is_whole && luhn(&number) {
            end = Some(next);
        }
        match bytes.get(next) {
            // Only the last group is shorter than four.
            Some(byte @ (b' ' | b'-')) if group >= 4 && separator.is_none_or(|other| other == *byte) => {
                separator = Some(*byte);
                next += 1;
            }
            _ => break,
        }
    }
    end
}

/// The check of ISO/IEC 7812-1, Annex B.
fn luhn(number: &[u8]) -> bool {
    let sum: u32 = number
        .iter()
        .rev()
        .enumerate()
        .map(|(place, byte)| match (place % 2, u32::from(byte - b'0')) {
            (0, digit) => digit,
            (_, digit) if digit > 4 => 2 * digit - 9,
            (_, digit) => 2 * digit,
        })
        .sum();
    sum.is_multiple_of(10)
}

fn phone(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes[at] != b'+' || !matches!(bytes.get(at + 1), Some(b'1'..=b'9')) || is_date(bytes, at + 1) {
        return None;
    }
    let (mut count, mut next, mut end) = (0, at + 1, None);
    loop {
        let group = digits(bytes, next, PHONE_DIGITS.end() + 1);
        count += group;
        if group == 0 || count > *PHONE_DIGITS.end() {
            break;
        }
        next += group;
        if PHONE_DIGITS.contains(&count) && is_end(bytes, next) {
            end = Some(next);
        }
        let is_digit = |place: usize| bytes.get(place).is_some_and(u8::is_ascii_digit);
        next += match (bytes.get(next), bytes.get(next + 1)) {
            // What follows a whole number is another one, such as a year.
            (Some(b' '), _) if count >= WHOLE_PHONE_DIGITS => break,
            (Some(b' ' | b'-' | b'.' | b'/' | b'(' | b')'), _) if is_digit(next + 1) => 1,
            (Some(b' '), Some(b'(')) | (Some(b')'), Some(b' ' | b'-')) if is_digit(next + 2) => 2,
            _ => break,
        };
    }
    end
}

/// Whether this is a date such as `2024-01-15`, which lines of differences have after a `+`.
fn is_date(bytes: &[u8], at: usize) -> bool {
    let text = bytes.get(at..at + "0000-00-00".len());
    text.is_some_and(|text| {
        text.iter()
            .enumerate()
            .all(|(place, byte)| if matches!(place, 4 | 7) { *byte == b'-' } else { byte.is_ascii_digit() })
    })
}

fn ssn(bytes: &[u8], at: usize) -> Option<usize> {
    let end = at + "000-00-0000".len();
    let text = bytes.get(at..end)?;
    let separator = text[3];
    let has_form = text.iter().enumerate().all(|(place, byte)| match place {
        3 | 6 => *byte == separator,
        _ => byte.is_ascii_digit(),
    });
    if !has_form || !b"- ".contains(&separator) || !is_end(bytes, end) {
        return None;
    }
    // Numbers that the Social Security Administration does not assign.
    let (area, group, serial) = (&text[..3], &text[4..6], &text[7..]);
    let is_assigned = area != b"000" && area != b"666" && area[0] != b'9' && group != b"00" && serial != b"0000";
    let is_part = continues_before(bytes, at, b"-.") || continues_after(bytes, end, b"-.");
    (is_assigned && !is_part).then_some(end)
}

fn ip(bytes: &[u8], at: usize) -> Option<usize> {
    let before = |sign: u8, is_part: fn(&u8) -> bool| at > 1 && bytes[at - 1] == sign && is_part(&bytes[at - 2]);
    // A part of a longer number, such as a version.
    if before(b'.', u8::is_ascii_alphanumeric) {
        return None;
    }
    let is_part = |byte: &u8| byte.is_ascii_hexdigit() || b".:".contains(byte);
    let run = bytes[at..].iter().take(MAX_IP + 1).take_while(|byte| is_part(byte)).count();
    let run = std::str::from_utf8(&bytes[at..at + run]).ok()?.trim_end_matches('.');
    let is_whole = |text: &str| is_end(bytes, at + text.len());
    let long = if run.ends_with("::") { run } else { run.trim_end_matches(':') };
    if !before(b':', u8::is_ascii_hexdigit)
        && let Ok(address) = long.parse::<Ipv6Addr>()
    {
        let is_long = long.bytes().filter(u8::is_ascii_hexdigit).count() >= MIN_IPV6_DIGITS;
        let is_other = !address.is_loopback() && !address.is_unspecified();
        let has_digit = long.bytes().any(|byte| byte.is_ascii_digit());
        return (is_long && is_other && has_digit && is_whole(long)).then_some(at + long.len());
    }
    // A colon is before a port, or ends a clause.
    let short = run.split(':').next().unwrap_or_default().trim_end_matches('.');
    let address = short.parse::<Ipv4Addr>().ok()?;
    (!address.is_loopback() && !address.is_unspecified() && is_whole(short)).then_some(at + short.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that are found, with their kinds.
    fn found(text: &str) -> Vec<(&'static str, &str)> {
        let mut all = Vec::new();
        find(text, &PiiKind::ALL, |place, kind| all.push((kind.name(), &text[place])));
        all
    }

    #[track_caller]
    fn check(kind: &str, positive: &[&str], negative: &[&str]) {
        for value in positive {
            for text in [value.to_string(), format!("({value}), then"), format!("is {value}."), format!("ü{value}ü")]
            {
                assert_eq!(found(&text), [(kind, *value)], "{text}");
            }
        }
        for text in negative {
            assert!(found(text).is_empty(), "{text}: {:?}", found(text));
        }
    }

    #[test]
    fn addresses_of_mail_are_found() {
        check(
            "email",
            &["ada@example.com", "ada.lovelace+x@mail.example.co.uk", "a_b%c-d@x-y.org", "a@xn--bcher-kva.xn--p1ai"],
            &[
                "ada@example",
                "@example.com",
                "ada@",
                "ada@.com",
                "ada.@example.com",
                "a..b@example..com",
                "ada@example.c",
                "a@-b.com",
                "x @y.com",
            ],
        );
        assert_eq!(found("mailto:ada@example.com?x=1"), [("email", "ada@example.com")]);
        assert_eq!(found("ada@example.com.4"), [("email", "ada@example.com")]);
        assert_eq!(found("ada@example.com-"), [("email", "ada@example.com")]);
    }

    #[test]
    fn account_numbers_are_found_by_country_length_and_check() {
        check(
            "iban",
            &[
                "DE89370400440532013000",
                "DE89 3704 0044 0532 0130 00",
                "GB29NWBK60161331926819",
                "no9386011117947",
                "MT84MALT011000012345MTLCAST001S",
            ],
            &[
                "DE88370400440532013000",
                "DE8937040044053201300",
                "DE893704004405320130001",
                "XX89370400440532013000",
                "DE",
            ],
        );
    }

    #[test]
    fn card_numbers_are_found_by_their_check() {
        check(
            "card",
            &[
                "4111111111111111",
                "4111 1111 1111 1111",
                "5555-5555-5555-4444",
                "3782 822463 10005",
                "6011000990139424",
                "4222222222222",
            ],
            &[
                "4111111111111112",
                "411111111111",
                "41111111111111111111",
                "4111 1111-1111 1111",
                "0.4111111111111111",
                "4111111111111111.5",
                "0000000000000000",
                "41 11 11 11 11 11 11 11",
            ],
        );
        assert_eq!(found("4111 1111 1111 1111 2025"), [("card", "4111 1111 1111 1111")]);
    }

    #[test]
    fn telephone_numbers_are_found_in_international_form() {
        check(
            "phone",
            &["+12025550143", "+1 202-555-0143", "+49 (0) 30 123456", "+44.20.7946.0958", "+1 (202) 555-0143"],
            &["+1234567", "+1234567890123456", "2025550143", "+0 2025550143", "1+2025550143", "+2024-01-15"],
        );
        assert_eq!(found("+49 30 1234567. 2026"), [("phone", "+49 30 1234567")]);
        assert_eq!(found("+49 30 1234567 2026"), [("phone", "+49 30 1234567")]);
        assert_eq!(found("+33 1 23 45 67 89"), [("phone", "+33 1 23 45 67 89")]);
    }

    #[test]
    fn social_security_numbers_are_found_in_their_ranges() {
        check(
            "ssn",
            &["123-45-6789", "899 01 0001"],
            &[
                "000-45-6789",
                "666-45-6789",
                "900-45-6789",
                "123-00-6789",
                "123-45-0000",
                "123456789",
                "123-45 6789",
                "123-45-6789-1",
                "1-123-45-6789",
            ],
        );
    }

    #[test]
    fn addresses_of_machines_are_found() {
        check(
            "ip",
            &["192.0.2.7", "2001:db8::1", "fe80::1ff:fe23:4567:890a", "::ffff:192.0.2.7"],
            &[
                "127.0.0.1",
                "0.0.0.0",
                "::1",
                "::",
                "a::b",
                "dead::beef",
                "256.1.1.1",
                "1.2.3",
                "1.2.3.4.5",
                "v1.2.3.4",
                "192.0.2.07",
                "12:30:45",
                "x[::1000]",
                "x[1000::2]",
                "aa:bb:cc:dd:ee:ff",
            ],
        );
        assert_eq!(found("http://192.0.2.7:8080/"), [("ip", "192.0.2.7")]);
        assert_eq!(found("[2001:db8::1]:443"), [("ip", "2001:db8::1")]);
        for text in ["ip:192.0.2.7", "from:192.0.2.7,", "192.0.2.7:8080:80", "a:192.0.2.7"] {
            assert_eq!(found(text), [("ip", "192.0.2.7")], "{text}");
        }
    }

    #[test]
    fn escapes_of_json_are_no_part_of_a_value() {
        for (value, kind) in [
            ("ada@example.com", "email"),
            ("+12025550143", "phone"),
            ("4111111111111111", "card"),
            ("192.0.2.7", "ip"),
            ("DE89370400440532013000", "iban"),
            ("123-45-6789", "ssn"),
        ] {
            let text = format!("\\n{value}\\tx");
            assert_eq!(found(&text), [(kind, value)], "{text}");
        }
    }

    #[test]
    fn any_text_can_be_searched() {
        // The signs that detectors look at, and letters of several bytes.
        let signs: Vec<char> = "0123456789aAfzDE@.+-_%:/() \u{e9}\u{4e2d}\n".chars().collect();
        let mut state = 1_u64;
        for length in 0..3000 {
            let text: String = (0..length % 90)
                .map(|_| {
                    // Knuth's linear congruential generator: the same texts in each run.
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    signs[(state >> 33) as usize % signs.len()]
                })
                .collect();
            let mut end = 0;
            find(&text, &PiiKind::ALL, |place, _| {
                assert!(end <= place.start && place.start < place.end && text.is_char_boundary(place.end), "{text}");
                end = place.end;
            });
        }
    }

    #[test]
    fn values_do_not_overlap_and_only_the_wanted_kinds_are_found() {
        let text = "123-45-6789@example.com 192.0.2.7 ada@example.com,bob@example.com";
        let kinds = [
            ("email", "123-45-6789@example.com"),
            ("ip", "192.0.2.7"),
            ("email", "ada@example.com"),
            ("email", "bob@example.com"),
        ];
        assert_eq!(found(text), kinds);
        let mut only = Vec::new();
        find(text, &[PiiKind::Ip], |place, _| only.push(&text[place]));
        assert_eq!(only, ["192.0.2.7"]);
    }
}
