//! The messages: a query, an update that replaces a name's addresses, and the answers to both.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::name::{Name, Reader};

pub(super) const HEADER: usize = 12;
/// The zone's name is the first thing after the header, and is pointed at from then on.
const TO_ZONE: u16 = 0xC000 | HEADER as u16;

const QUERY: u8 = 0;
const UPDATE: u8 = 5;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const TSIG: u16 = 250;
const IN: u16 = 1;
/// No class: "whatever is there", in updates and signatures.
pub(super) const ANY: u16 = 255;

/// A kind of record that holds an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    A = 1,
    Aaaa = 28,
}

/// Addresses of a name; never none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted(BTreeSet<IpAddr>);

impl Wanted {
    pub(super) fn new(addresses: BTreeSet<IpAddr>) -> Option<Self> {
        (!addresses.is_empty()).then_some(Self(addresses))
    }

    pub(super) fn addresses(&self) -> &BTreeSet<IpAddr> {
        &self.0
    }
}

/// A query for the addresses of one kind, to the authoritative server.
pub(super) fn query(id: u16, name: &Name, kind: Kind) -> Vec<u8> {
    let mut out = header(id, QUERY, [1, 0, 0, 0]);
    out.extend(name.wire());
    put(&mut out, &[kind as u16, IN]);
    out
}

/// Replaces all addresses of the name atomically (RFC 2136, 2.5.2 and 2.5.1); records of other types stay.
pub(super) fn update(id: u16, zone: &Name, name: &[u8], ttl: u32, wanted: &Wanted) -> Vec<u8> {
    let mut out = header(id, UPDATE, [1, 0, 2 + wanted.0.len() as u16, 0]);
    out.extend(zone.wire());
    put(&mut out, &[SOA, IN]);
    // The name once, and then pointers to it. A name this short ends far below the 16 KiB that a pointer reaches.
    let to_name = if name.is_empty() { TO_ZONE } else { 0xC000 | out.len() as u16 };
    out.extend(name);
    put(&mut out, &[TO_ZONE, Kind::A as u16, ANY, 0, 0, 0]);
    put(&mut out, &[to_name, Kind::Aaaa as u16, ANY, 0, 0, 0]);
    for address in &wanted.0 {
        let (kind, data) = match address {
            IpAddr::V4(v4) => (Kind::A, v4.octets().to_vec()),
            IpAddr::V6(v6) => (Kind::Aaaa, v6.octets().to_vec()),
        };
        put(&mut out, &[to_name, kind as u16, IN, (ttl >> 16) as u16, ttl as u16, data.len() as u16]);
        out.extend(data);
    }
    out
}

fn header(id: u16, opcode: u8, counts: [u16; 4]) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    put(&mut out, &[id, u16::from(opcode) << 11]);
    put(&mut out, &counts);
    out
}

fn put(out: &mut Vec<u8>, numbers: &[u16]) {
    out.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
}

/// A parsed response. Its signature is not verified yet.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) id: u16,
    /// That of the request, with whether this is an answer at all.
    pub(super) opcode: Option<u8>,
    pub(super) authoritative: bool,
    pub(super) truncated: bool,
    pub(super) rcode: u8,
    /// Of the answer section.
    pub(super) records: Vec<Record>,
    pub(super) signature: Option<Signature>,
}

#[derive(Debug)]
pub(super) struct Record {
    pub(super) name: Name,
    pub(super) ttl: u32,
    pub(super) data: Data,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Data {
    Address(IpAddr),
    Alias,
    Other,
}

/// A TSIG record (RFC 8945, 4.2).
#[derive(Debug)]
pub(super) struct Signature {
    /// The offset of its record.
    pub(super) begins: usize,
    pub(super) key: Name,
    pub(super) algorithm: Name,
    pub(super) time: u64,
    pub(super) fudge: u16,
    pub(super) mac: Vec<u8>,
    pub(super) original_id: u16,
    pub(super) error: u16,
    pub(super) other: Vec<u8>,
}

impl Answer {
    /// Parses a message. `None` if it is malformed, has trailing bytes, or has a signature anywhere but at its end.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let (id, flags) = (reader.u16()?, reader.u16()?);
        let [questions, answers, authority, additional] =
            [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?].map(usize::from);
        for _ in 0..questions {
            reader.name()?;
            reader.take(4)?;
        }
        let (mut records, mut signature) = (Vec::new(), None);
        let sections = answers + authority + additional;
        for number in 0..sections {
            let begins = reader.at();
            let (name, kind, class, ttl) = (reader.name()?, reader.u16()?, reader.u16()?, reader.u32()?);
            let length = usize::from(reader.u16()?);
            if kind == TSIG {
                let is_last = number + 1 == sections && additional > 0;
                if !is_last || class != ANY || ttl != 0 {
                    return None;
                }
                let ends = reader.at() + length;
                signature = Some(Signature::read(&mut reader, begins, name)?);
                if reader.at() != ends {
                    return None;
                }
                continue;
            }
            let data = reader.take(length)?;
            if number < answers && class == IN {
                records.push(Record { name, ttl, data: Data::read(kind, data)? });
            }
        }
        let opcode = (flags & 0x8000 != 0).then_some((flags >> 11) as u8 & 0xF);
        let (authoritative, truncated) = (flags & 0x0400 != 0, flags & 0x0200 != 0);
        let rcode = (flags & 0xF) as u8;
        reader.is_at_end().then_some(Self { id, opcode, authoritative, truncated, rcode, records, signature })
    }
}

impl Data {
    fn read(kind: u16, data: &[u8]) -> Option<Self> {
        Some(match kind {
            kind if kind == Kind::A as u16 => Self::Address(IpAddr::from(<[u8; 4]>::try_from(data).ok()?)),
            kind if kind == Kind::Aaaa as u16 => Self::Address(IpAddr::from(<[u8; 16]>::try_from(data).ok()?)),
            CNAME => Self::Alias,
            _ => Self::Other,
        })
    }
}

impl Signature {
    fn read(reader: &mut Reader<'_>, begins: usize, key: Name) -> Option<Self> {
        let (algorithm, time, fudge) = (reader.name()?, reader.u48()?, reader.u16()?);
        let length = reader.u16()?;
        let mac = reader.take(length.into())?.to_vec();
        let (original_id, error) = (reader.u16()?, reader.u16()?);
        let length = reader.u16()?;
        let other = reader.take(length.into())?.to_vec();
        Some(Self { begins, key, algorithm, time, fudge, mac, original_id, error, other })
    }
}
