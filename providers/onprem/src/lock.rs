//! Locks that tell whether a process still lives, and which one.
//!
//! Record locks (`fcntl`), not `flock`: they stay with the process over `exec`, are not inherited by its children, go with
//! the process however it ends, and the kernel says who holds one. A process that holds such a lock must never open and
//! close that file elsewhere, because closing any descriptor of it gives the lock up.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use camino::Utf8Path;
use rustix::fs::FlockOperation;
use rustix::io::FdFlags;
use rustix::process::{Flock, FlockType};

/// The process that holds the lock of a file, if any does. Asking takes nothing.
pub(crate) fn holder(path: &Utf8Path) -> io::Result<Option<u32>> {
    let file = match crate::files::open_plain(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let held = rustix::process::fcntl_getlk(&file, &Flock::from(FlockType::WriteLock))?;
    // A holder in another pid namespace has no number here; 0 keeps "held" and "by whom" apart.
    Ok(held.map(|lock| lock.pid.map_or(0, |pid| pid.as_raw_nonzero().get() as u32)))
}

/// Takes the lock of a file for as long as this process lives and the file stays open. `WouldBlock` when another holds it.
pub(crate) fn take(path: &Utf8Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(path)?;
    match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        // POSIX allows either for a lock that is held.
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::AGAIN) => Err(io::ErrorKind::WouldBlock.into()),
        Err(error) => Err(error.into()),
    }
}

/// Keeps a taken lock over the next `exec` of this process.
pub(crate) fn keep_over_exec(file: File) -> io::Result<OwnedFd> {
    let fd = OwnedFd::from(file);
    rustix::io::fcntl_setfd(&fd, FdFlags::empty())?;
    Ok(fd)
}

/// When a process began, in clock ticks since boot: with the number it names one process for ever. `None` when it is gone
/// or only waits to be reaped.
pub(crate) fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command may hold spaces and brackets; the fields behind its last bracket cannot.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(19)?.parse().ok()
}
