//! A tar as anybody reads it, to know where to hit it.

use camino::Utf8Path;

/// A member and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) data: usize,
    pub(crate) size: usize,
}

/// All members of an archive.
pub(crate) fn members(bytes: &[u8]) -> Vec<Member> {
    let (mut at, mut found, mut longer) = (0, Vec::new(), None);
    while at + 512 <= bytes.len() && bytes[at] != 0 {
        let header = &bytes[at..at + 512];
        let text = |from: usize, length: usize| {
            let field = &header[from..from + length];
            String::from_utf8_lossy(&field[..field.iter().position(|b| *b == 0).unwrap_or(length)]).into_owned()
        };
        let size = usize::from_str_radix(text(124, 12).trim(), 8).expect("a size in octal");
        let (kind, data) = (header[156], at + 512);
        let next = data + size.div_ceil(512) * 512;
        if kind == b'x' {
            let records = String::from_utf8_lossy(&bytes[data..data + size]).into_owned();
            longer = records.lines().find_map(|l| Some(l.split_once(" path=")?.1.to_owned()));
        } else {
            let prefix = text(345, 155);
            let short = if prefix.is_empty() { text(0, 100) } else { format!("{prefix}/{}", text(0, 100)) };
            found.push(Member { name: longer.take().unwrap_or(short), data, size });
        }
        at = next;
    }
    found
}

/// The member of a name.
#[track_caller]
pub(crate) fn member(bytes: &[u8], name: &str) -> Member {
    let all = members(bytes);
    all.iter().find(|m| m.name == name).cloned().unwrap_or_else(|| panic!("no {name} in {all:?}"))
}

/// Writes a copy that was changed.
pub(crate) fn changed(bytes: &[u8], to: &Utf8Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut copy = bytes.to_vec();
    change(&mut copy);
    std::fs::write(to, copy).unwrap();
}
