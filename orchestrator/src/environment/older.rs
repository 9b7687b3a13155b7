//! Reads a file, in today's keys or in older ones.

use std::sync::Arc;

use super::library::Source;
use super::problem::Problem;
use super::tree::{self, Node};

/// Reads a source.
pub(crate) fn read(source: &Source, file: &Arc<str>, problems: &mut Vec<Problem>) -> Option<Node> {
    tree::read(&source.bytes, file, problems)
}
