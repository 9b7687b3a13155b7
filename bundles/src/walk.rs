//! Reads the content of an archive in order: every header, every chunk, every byte of padding.

use crate::error::{Damage, Error, Result};
use crate::flow::{Batch, Drive, Event};
use crate::layout::{Layout, Role, name};
use crate::manifest::{Chunk, Manifest};
use crate::open::{Feed, is_content, member_header, padding, trailer};

/// Reads the content members one after another.
pub(crate) struct Walk<'a> {
    pub(crate) feed: &'a mut Feed,
    pub(crate) layout: &'a Layout,
    pub(crate) manifest: &'a Manifest,
    /// The number of chunks to skip in each file; empty: none.
    pub(crate) skip: &'a [usize],
    pub(crate) drive: &'a Drive<'a>,
    pub(crate) doing: &'static str,
    /// Continues after damage, and lists it.
    pub(crate) lenient: bool,
    pub(crate) damages: Vec<Damage>,
    at: Cursor,
}

#[derive(Default)]
struct Cursor {
    member: usize,
    entered: bool,
    chunk: usize,
    offset: u64,
    ended: bool,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(
        feed: &'a mut Feed,
        layout: &'a Layout,
        manifest: &'a Manifest,
        drive: &'a Drive<'a>,
    ) -> Walk<'a> {
        let damages = Vec::new();
        Walk {
            feed,
            layout,
            manifest,
            skip: &[],
            drive,
            doing: "reading",
            lenient: false,
            damages,
            at: Cursor::default(),
        }
    }

    /// The next pieces; none at the end. The data member of a delta counts as file 0.
    pub(crate) fn fill(&mut self, batch: &mut Batch) -> Result<()> {
        self.drive.check(|| format!("{} the bundle", self.doing))?;
        while !self.at.ended {
            let Some(member) = self.layout.members.get(self.at.member) else {
                trailer(self.feed, self.layout.total, &mut self.damages)?;
                self.at.ended = true;
                self.strict()?;
                return Ok(());
            };
            if !is_content(member) {
                self.at.member += 1;
                continue;
            }
            let path = name(member.role, &self.manifest.files).0;
            let (file, chunks) = chunks(self.manifest, member.role);
            let at = &mut self.at;
            if !at.entered {
                member_header(self.feed, self.layout, member, &self.manifest.files, &mut self.damages)?;
                (at.entered, at.chunk, at.offset) = (true, 0, member.data_at);
                let skip = self.skip.get(file).copied().unwrap_or(0);
                for chunk in &chunks[..skip] {
                    at.offset += u64::from(chunk.size);
                }
                at.chunk = skip;
                if skip < chunks.len() {
                    (self.drive.progress)(Event::File { path });
                }
            }
            if let Some(chunk) = chunks.get(at.chunk) {
                let size = chunk.size as usize;
                if !batch.fits(size) {
                    return Ok(());
                }
                self.feed.read_piece(batch, at.offset - member.data_at, size, at.offset)?;
                batch.take(file, at.chunk, size, at.chunk == 0, at.chunk + 1 == chunks.len());
                at.offset += size as u64;
                at.chunk += 1;
            }
            if at.chunk == chunks.len() {
                padding(self.feed, member, path, &mut self.damages)?;
                (at.member, at.entered) = (at.member + 1, false);
            }
            self.strict()?;
        }
        Ok(())
    }

    fn strict(&self) -> Result<()> {
        if self.lenient || self.damages.is_empty() {
            Ok(())
        } else {
            Err(Error::Damaged { damages: self.damages.clone() })
        }
    }
}

/// The chunks of a member, and their file index.
pub(crate) fn chunks(manifest: &Manifest, role: Role) -> (usize, &[Chunk]) {
    match role {
        Role::File(n) => (n, &manifest.files[n].chunks),
        Role::Chunks => (0, manifest.delta.as_ref().map_or(&[], |delta| &delta.carries)),
        Role::Manifest | Role::Signature | Role::Sums => (0, &[]),
    }
}
