//! The requests: a query, and an update that replaces a name's addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};

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

/// The types of records that hold an address.
pub(super) const ADDRESSES: [RecordType; 2] = [RecordType::A, RecordType::AAAA];

/// A query for records of one type, to the authoritative server.
pub(super) fn query(id: u16, name: &Name, kind: RecordType) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name.clone(), kind));
    message
}

/// Replaces all addresses of the name atomically (RFC 2136, 2.5.2 and 2.5.1); records of other types stay.
pub(super) fn update(id: u16, zone: &Name, name: &Name, ttl: u32, wanted: &Wanted) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Update);
    message.add_query(Query::query(zone.clone(), RecordType::SOA));
    for kind in ADDRESSES {
        let mut delete = Record::update0(name.clone(), 0, kind);
        delete.dns_class = DNSClass::ANY;
        message.add_authority(delete);
    }
    message.add_authorities(wanted.0.iter().map(|address| Record::from_rdata(name.clone(), ttl, (*address).into())));
    message
}
