use std::collections::BTreeSet;

use hickory_proto::op::Message;
use hickory_proto::rr::{self, RecordType};

use super::super::failed::Failed;
use super::super::message::{self, Wanted};
use super::super::name::Name;
use super::super::tsig::{Algorithm, FUDGE, Key, Signed};

const SECRET: &[u8] = b"this is a key for tests only, 32 b";

/// One exchange between two other programs.
struct Recorded {
    key: Key,
    what: &'static str,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Recorded {
    fn all() -> Vec<Self> {
        let lines = include_str!("../golden.txt").lines().filter(|line| !line.starts_with('#'));
        lines.map(Self::read).collect()
    }

    fn read(line: &'static str) -> Self {
        let [algorithm, key, what, request, answer] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let algorithm: Algorithm = serde_yaml::from_str(algorithm).unwrap();
        let key = Key::new(name(key), algorithm, SECRET.to_vec());
        Self { key, what, request: hex::decode(request).unwrap(), answer: hex::decode(answer).unwrap() }
    }

    /// When it was, by its own signature.
    fn time(&self) -> u64 {
        Message::from_vec(&self.request).unwrap().signature.unwrap().data.time
    }

    /// The same made by us.
    fn ours(&self) -> Signed {
        let id = u16::from_be_bytes([self.request[0], self.request[1]]);
        let (zone, own) = (name("example.com"), name("textnlp.example.com"));
        let message = match self.what {
            "update" => message::update(id, &zone, &own, 60, &wanted("192.0.2.1 2001:db8::3")),
            "A" => message::query(id, &own, RecordType::A),
            _ => message::query(id, &own, RecordType::AAAA),
        };
        self.key.sign(message, self.time())
    }
}

fn name(text: &str) -> rr::Name {
    Name::try_from(text.to_owned()).unwrap().0
}

fn wanted(addresses: &str) -> Wanted {
    Wanted::new(addresses.split(' ').map(|address| address.parse().unwrap()).collect()).unwrap()
}

#[test]
fn dns_requests_match_nsupdate_and_dig_byte_for_byte() {
    assert_eq!(Recorded::all().len(), 4);
    for recorded in Recorded::all() {
        assert_eq!(hex::encode(&recorded.ours().bytes), hex::encode(&recorded.request), "{}", recorded.what);
    }
}

#[test]
fn answers_of_named_are_verified_and_parsed() {
    for recorded in Recorded::all() {
        let answer = recorded.key.open(&recorded.answer, &recorded.ours(), recorded.time()).unwrap();
        assert_eq!(answer.response_code.low(), 0);
        let found: Vec<_> =
            answer.answers.iter().map(|record| (record.name.to_string(), record.ttl, record.data.ip_addr())).collect();
        let at = |address: &str| Some(address.parse().unwrap());
        match recorded.what {
            "A" => assert_eq!(found, [("textnlp.example.com.".to_owned(), 60, at("192.0.2.1"))]),
            "AAAA" => assert_eq!(found, [("textnlp.example.com.".to_owned(), 60, at("2001:db8::3"))]),
            _ => assert!(found.is_empty()),
        }
    }
}

#[test]
fn dns_answer_with_one_changed_bit_is_rejected() {
    for recorded in Recorded::all() {
        let (request, time) = (recorded.ours(), recorded.time());
        for bit in 0..recorded.answer.len() * 8 {
            let mut answer = recorded.answer.clone();
            answer[bit / 8] ^= 1 << (bit % 8);
            // Names are the same in either case.
            let case = bit % 8 == 5 && recorded.answer[bit / 8].is_ascii_alphabetic();
            let opened = recorded.key.open(&answer, &request, time);
            assert!(opened.is_err() || case, "bit {bit} of {}", recorded.what);
        }
        for length in 0..recorded.answer.len() {
            assert!(recorded.key.open(&recorded.answer[..length], &request, time).is_err());
        }
    }
}

#[test]
fn dns_answer_is_valid_for_one_request_one_key_and_a_limited_time() {
    let [first, other, a, aaaa] = Recorded::all().try_into().map_err(|_| ()).unwrap();
    let (request, time) = (first.ours(), first.time());
    let open = |answer: &[u8], now| first.key.open(answer, &request, now);
    let last = time + u64::from(FUDGE);
    assert!(open(&first.answer, last).is_ok());
    assert!(
        matches!(open(&first.answer, last + 1), Err(Failed::Clock { server, here }) if server == time && here > last)
    );
    assert!(matches!(open(&other.answer, time), Err(Failed::Malformed(_))));
    // The request itself, sent back.
    assert!(matches!(open(&first.request, time), Err(Failed::Malformed(_))));
    // The right number on the right answer to another question.
    let mut moved = aaaa.answer.clone();
    moved[..2].copy_from_slice(&a.request[..2]);
    assert!(matches!(a.key.open(&moved, &a.ours(), a.time()), Err(Failed::Forged)));
    let stranger = Key::new(name("textnlp-key"), Algorithm::HmacSha256, b"another secret of some bytes".to_vec());
    assert!(matches!(stranger.open(&first.answer, &request, time), Err(Failed::Forged)));
    // What says that all is well and is not signed.
    let mut bare = Message::from_vec(&first.answer).unwrap();
    bare.signature = None;
    let mut bare = bare.to_vec().unwrap();
    assert!(matches!(open(&bare, time), Err(Failed::Unsigned { rcode: 0 })));
    bare[3] = 5;
    assert!(matches!(open(&bare, time), Err(Failed::Unsigned { rcode: 5 })));
}

#[test]
fn malformed_dns_messages_never_panic_the_witness() {
    // Xorshift: the same bytes each time.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let all: Vec<_> = Recorded::all().into_iter().map(|recorded| (recorded.ours(), recorded)).collect();
    for round in 0..200_000 {
        let (request, recorded) = &all[round % all.len()];
        let bytes: Vec<u8> = if round % 2 == 0 {
            (0..random() % 200).map(|_| random() as u8).collect()
        } else {
            let mut bytes = recorded.answer.clone();
            for _ in 0..1 + random() % 6 {
                let at = random() as usize % bytes.len();
                // Pointers, lengths and zeros are what parsers stumble over.
                bytes[at] = [0, 0xC0, 0xFF, 63, 64, random() as u8][random() as usize % 6];
            }
            bytes.truncate(bytes.len() - (random() as usize % 3) * (random() as usize % bytes.len()) / 2);
            bytes
        };
        let _ = recorded.key.open(&bytes, request, 0);
    }
    // A name that points at itself, and two that point at each other.
    for names in ["c00c", "c00ec00c"] {
        let bytes = hex::decode(format!("000180000001000000000000{names}00010001")).unwrap();
        assert!(Message::from_vec(&bytes).is_err());
    }
}

#[test]
fn dns_update_of_the_zone_apex_uses_a_name_pointer() {
    let zone = name("Example.COM.");
    let message = message::update(7, &zone, &name("example.com"), 70_000, &wanted("192.0.2.1"));
    let expected = "0007280000010000000300 00 076578616d706c6503636f6d0000060001 c00c000100ff000000000000 c00c001c00ff000000000000 c00c0001000100011170 0004c0000201";
    assert_eq!(hex::encode(message.to_vec().unwrap()), expected.replace(' ', ""));
}

#[test]
fn dns_names_are_validated_when_parsed() {
    for (text, within) in [
        ("textnlp.example.com", true),
        ("TextNLP.Example.Com.", true),
        ("example.com", true),
        ("a_b.c-d.example.com", true),
        ("example.org", false),
        ("notexample.com", false),
        ("com", false),
    ] {
        assert_eq!(name("example.com").zone_of(&name(text)), within, "{text}");
    }
    let long = "a".repeat(64);
    for text in ["", ".", "a..b", ".a", "*.example.com", "a b", "ä.de", &long, &format!("{}a", "abcdefg.".repeat(32))]
    {
        assert!(Name::try_from((*text).to_owned()).is_err(), "{text}");
    }
    assert_eq!(Name::try_from("TextNLP.Example.Com.".to_owned()).unwrap().to_string(), "textnlp.example.com");
    assert!(Wanted::new(BTreeSet::new()).is_none());
}
