//! File locks that identify a living process.
//!
//! Record locks (`fcntl`), not `flock`: they survive `exec`, are not inherited by children, are released when the
//! process ends, and the kernel reports the holder. A process that holds such a lock must never open and
//! close that file elsewhere, because closing any descriptor of it gives the lock up.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use camino::Utf8Path;
use rustix::fs::FlockOperation;
use rustix::io::FdFlags;
use rustix::process::{Flock, FlockType};

/// The process that holds the lock of a file, if any. Does not take the lock.
pub(crate) fn holder(path: &Utf8Path) -> io::Result<Option<u32>> {
    let file = match textnlp_keys::files::open_plain(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let held = rustix::process::fcntl_getlk(&file, &Flock::from(FlockType::WriteLock))?;
    // A holder in another pid namespace has no pid here; 0 means "held by an unknown process".
    Ok(held.map(|lock| lock.pid.map_or(0, |pid| pid.as_raw_nonzero().get() as u32)))
}

/// Takes the lock of a file while this process lives and the file is open. `WouldBlock` when another process holds it.
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

/// The start time of a process in clock ticks since boot; together with the pid it is unique. `None` when the process
/// is gone or a zombie.
pub(crate) fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command may hold spaces and brackets; the fields behind its last bracket cannot.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(19)?.parse().ok()
}
