//! Mutations of inputs, the same for the same seed: of bytes, and of the values in JSON, which bytes would only break.

use serde_json::{Value, json};
use textnlp_tests::Dice;

/// Numbers at which lengths, counts and offsets go wrong.
const NUMBERS: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 40, u64::MAX >> 1, u64::MAX];

/// Pieces that formats react to.
const PIECES: [&[u8]; 24] = [
    b"\r\n",
    b"\n",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b"null",
    b"-1",
    b"1e400",
    b"*a",
    b"&a ",
    b"<<: ",
    b"${A:-",
    b"\xff\xfe",
    b"\xe2\x80\xae",
    b"transfer-encoding: chunked\r\n",
    b"content-length: 5\r\n",
];

/// Changes an input. `others` are inputs of which parts are taken over.
pub fn mutate(bytes: &mut Vec<u8>, others: &[Vec<u8>], most_bytes: usize, random: &mut Dice) {
    // Lines of JSON, the first perhaps after a mark.
    let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let at = random.index(lines.len());
    let changed = lines.get(at).and_then(|line| {
        let start = line.iter().position(|byte| *byte == b'{')?;
        let mut value: Value = serde_json::from_slice(&line[start..]).ok()?;
        for _ in 0..=random.index(3) {
            mutate_json(&mut value, random);
        }
        let end: &[u8] = if line.ends_with(b"\n") { b"\n" } else { b"" };
        Some([&line[..start], value.to_string().as_bytes(), end].concat())
    });
    match changed.filter(|_| random.index(4) > 0) {
        Some(changed) => {
            lines[at] = changed;
            *bytes = lines.concat();
            bytes.truncate(most_bytes);
        }
        None => mutate_bytes(bytes, others, most_bytes, random),
    }
}

/// Changes one value somewhere in it.
fn mutate_json(value: &mut Value, random: &mut Dice) {
    let children = match value {
        Value::Array(items) => items.len(),
        Value::Object(members) => members.len(),
        _ => 0,
    };
    if children > 0 && random.index(6) > 0 {
        let at = random.index(children);
        match value {
            Value::Array(items) => return mutate_json(&mut items[at], random),
            Value::Object(members) => {
                if let Some(member) = members.values_mut().nth(at) {
                    return mutate_json(member, random);
                }
            }
            _ => {}
        }
    }
    match (random.index(4), &mut *value) {
        (0, Value::Array(items)) if !items.is_empty() => {
            let copy = items[random.index(items.len())].clone();
            items.insert(random.index(items.len()), copy);
        }
        (1, Value::Array(items)) if !items.is_empty() => drop(items.remove(random.index(items.len()))),
        (0, Value::Object(members)) if !members.is_empty() => {
            let name = members.keys().nth(random.index(members.len())).cloned().unwrap_or_default();
            members.shift_remove(&name);
        }
        (1, Value::Object(members)) => drop(members.insert("x".to_owned(), Value::Null)),
        (0, Value::String(text)) => text.push_str("../\u{202e}\u{7}"),
        (1, Value::String(text)) => drop(text.pop()),
        (2, Value::String(text)) => *text = text.repeat(1 + random.index(50)),
        _ => {
            *value = match random.index(9) {
                0 => Value::Null,
                1 => json!(true),
                2 => json!(-1),
                3 => json!(0.5),
                4 => json!(NUMBERS[random.index(NUMBERS.len())]),
                5 => json!(""),
                6 => json!([]),
                7 => json!({}),
                _ => json!([[], {}, "a", 0]),
            }
        }
    }
}

/// Changes the bytes at 1 to 8 places.
fn mutate_bytes(bytes: &mut Vec<u8>, others: &[Vec<u8>], most_bytes: usize, random: &mut Dice) {
    for _ in 0..=random.index(8) {
        // Half of the changes are near the beginning, where headers are.
        let reach = if random.index(2) == 0 { bytes.len() } else { bytes.len().min(512) };
        let at = random.index(reach + 1).min(bytes.len());
        let magnitude = random.index(8);
        let length = (1 + random.index(1 << magnitude)).min(bytes.len() - at);
        match random.index(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.index(8),
            1 if at < bytes.len() => bytes[at] = random.index(256) as u8,
            2 => drop(bytes.drain(at..at + length)),
            3 => {
                let copy = bytes[at..at + length].to_vec();
                drop(bytes.splice(at..at, copy));
            }
            4 => {
                let number = NUMBERS[random.index(NUMBERS.len())].to_le_bytes();
                let width = (1usize << random.index(4)).min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            5 => {
                // The number in digits that begins here or later.
                if let Some(from) = bytes[at..].iter().position(u8::is_ascii_digit).map(|found| at + found) {
                    let end = bytes[from..].iter().position(|b| !b.is_ascii_digit()).map_or(bytes.len(), |n| from + n);
                    let number = NUMBERS[random.index(NUMBERS.len())].to_string();
                    drop(bytes.splice(from..end, number.into_bytes()));
                }
            }
            6 => drop(bytes.splice(at..at, PIECES[random.index(PIECES.len())].iter().copied())),
            7 if !others.is_empty() => {
                let other = &others[random.index(others.len())];
                let from = random.index(other.len() + 1).min(other.len());
                let part = &other[from..(from + 1 + random.index(256)).min(other.len())];
                drop(bytes.splice(at..at, part.iter().copied()));
            }
            _ => bytes.truncate(at.max(1)),
        }
        bytes.truncate(most_bytes);
    }
}
