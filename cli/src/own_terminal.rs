//! A terminal of its own for the command of another user. With root's terminal, a program of that user could read what root types after
//! the command ended, and write to the screen.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::getpgrp;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{
    LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr, tcsetwinsize,
};

use crate::report::Exit;
use crate::signals;

/// How often the end of the command is looked for, if it prints nothing.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// How long what the command has printed may take from its terminal to ours: the kernel hands it over in the background. It is waited for only
/// where a process that it left behind still has the terminal open.
const SETTLING: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// The most that is copied after the end of the command; another process may hold its terminal and go on.
const MOST_AFTER_END: usize = 1 << 20;

/// The most bytes of a line that is not shown.
#[cfg_attr(not(feature = "aws"), allow(dead_code, reason = "only the sign-in of a cloud asks"))]
const LONGEST_HIDDEN: usize = 100;

/// A terminal that does not show what is typed.
struct HiddenTerminal {
    terminal: OwnedFd,
    /// Its mode before.
    mode: Termios,
    /// Its end wakes the reader.
    _waker: UnixStream,
}

/// What a signal restores: the end of this process would leave the terminal without echo.
static HIDDEN: Mutex<Option<HiddenTerminal>> = Mutex::new(None);

/// Reads a line from a terminal that does not show it. Ctrl-C and signals end it with an error, or the process, with the
/// terminal as it was before.
#[cfg_attr(not(feature = "aws"), allow(dead_code, reason = "only the sign-in of a cloud asks"))]
pub fn read_hidden(terminal: impl AsFd) -> io::Result<Vec<u8>> {
    signals::watch(show)?;
    let (woken, waker) = UnixStream::pair()?;
    let mode = tcgetattr(&terminal)?;
    let mut hidden = mode.clone();
    // Keys are bytes, not signals.
    hidden.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
    let shown = HiddenTerminal { terminal: terminal.as_fd().try_clone_to_owned()?, mode, _waker: waker };
    {
        let mut current = HIDDEN.lock().unwrap_or_else(PoisonError::into_inner);
        tcsetattr(&terminal, OptionalActions::Flush, &hidden)?;
        *current = Some(shown);
    }
    let line = read_line(&terminal, &woken);
    show(false);
    line
}

/// Shows again what is typed at the hidden terminal, and wakes its reader. If it `ends` the process, nothing is hidden after it.
fn show(ends: bool) {
    let mut current = HIDDEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(HiddenTerminal { terminal, mode, .. }) = current.take() {
        // A terminal that is gone needs no mode.
        let _ = tcsetattr(&terminal, OptionalActions::Now, &mode);
    }
    if ends {
        std::process::exit(Exit::Stopped as i32);
    }
}

fn read_line(terminal: impl AsFd, woken: &UnixStream) -> io::Result<Vec<u8>> {
    const CTRL_C: u8 = 3;
    const CTRL_D: u8 = 4;
    const ERASE: [u8; 2] = [8, 127];
    let cancelled = || io::Error::new(io::ErrorKind::Interrupted, "the input was cancelled");
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        let mut ready = [PollFd::new(&terminal, PollFlags::IN), PollFd::new(woken, PollFlags::IN)];
        match poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(_) if !ready[1].revents().is_empty() => return Err(cancelled()),
            Ok(_) => {}
        }
        match rustix::io::read(&terminal, &mut byte) {
            Ok(0) => return Ok(line),
            Ok(_) if matches!(byte[0], b'\n' | b'\r' | CTRL_D) => return Ok(line),
            Ok(_) if byte[0] == CTRL_C || line.len() == LONGEST_HIDDEN => return Err(cancelled()),
            Ok(_) if ERASE.contains(&byte[0]) => drop(line.pop()),
            Ok(_) => line.push(byte[0]),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A pseudoterminal between the caller's terminal and a command.
pub struct OwnTerminal {
    /// Standard input, output and error of the caller.
    streams: [OwnedFd; 3],
    are_terminals: [bool; 3],
    /// Our side.
    host: OwnedFd,
    /// The side of the command.
    guest: OwnedFd,
}

impl OwnTerminal {
    /// For a caller with these streams; `None` if none of them is a terminal.
    pub fn between(streams: [OwnedFd; 3]) -> io::Result<Option<Self>> {
        let are_terminals = streams.each_ref().map(isatty);
        let Some(first) = are_terminals.iter().position(|is_terminal| *is_terminal) else { return Ok(None) };
        let host = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&host)?;
        unlockpt(&host)?;
        let name = ptsname(&host, Vec::new())?;
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let guest = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty())?;
        tcsetattr(&guest, OptionalActions::Now, &tcgetattr(&streams[first])?)?;
        tcsetwinsize(&guest, tcgetwinsize(&streams[first])?)?;
        Ok(Some(Self { streams, are_terminals, host, guest }))
    }

    /// Replaces the terminals among the streams of a command. Returns the terminal that the command has to make its controlling one.
    pub fn give_to(&self, command: &mut Command) -> io::Result<OwnedFd> {
        let stream = || self.guest.try_clone().map(Stdio::from);
        if self.are_terminals[0] {
            command.stdin(stream()?);
        }
        if self.are_terminals[1] {
            command.stdout(stream()?);
        }
        if self.are_terminals[2] {
            command.stderr(stream()?);
        }
        self.guest.try_clone()
    }

    /// Copies between the two terminals, once the command has started.
    pub fn copy(self) -> io::Result<Copying> {
        let Self { streams, are_terminals, host, guest } = self;
        drop(guest);
        let [stdin, stdout, stderr] = streams;
        let screen = match are_terminals {
            [_, _, true] => stderr,
            [_, true, _] => stdout,
            _ => stdin.try_clone()?,
        };
        // A process in the background neither reads from the terminal nor changes it.
        let is_foreground = || tcgetpgrp(&stdin).is_ok_and(|group| group == getpgrp());
        let mut before = None;
        if are_terminals[0] && is_foreground() {
            let mode = tcgetattr(&stdin)?;
            let mut raw = mode.clone();
            raw.make_raw();
            tcsetattr(&stdin, OptionalActions::Now, &raw)?;
            before = Some((stdin.try_clone()?, mode));
            let (typed, host) = (stdin, host.try_clone()?);
            // It waits for a key, and ends with this process.
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = rustix::io::read(&typed, &mut buffer) {
                    if write_all(&host, &buffer[..length]).is_err() {
                        break;
                    }
                }
            });
        }
        let has_ended = Arc::new(AtomicBool::new(false));
        let size = (screen.try_clone()?, host.try_clone()?);
        let ended = has_ended.clone();
        let printer = std::thread::spawn(move || print(&host, &screen, &ended));
        Ok(Copying { has_ended, printer: Some(printer), before, size })
    }
}

/// The copying between two terminals. Its end restores the mode of the caller's terminal.
pub struct Copying {
    has_ended: Arc<AtomicBool>,
    printer: Option<JoinHandle<()>>,
    before: Option<(OwnedFd, Termios)>,
    /// The caller's terminal and ours.
    size: (OwnedFd, OwnedFd),
}

impl Copying {
    /// What applies a changed size of the caller's window.
    pub fn resizer(&self) -> io::Result<impl Fn() + Send + 'static> {
        let (screen, host) = (self.size.0.try_clone()?, self.size.1.try_clone()?);
        Ok(move || {
            if let Ok(size) = tcgetwinsize(&screen) {
                // The command then shows the old size.
                let _ = tcsetwinsize(&host, size);
            }
        })
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.has_ended.store(true, Relaxed);
        if let Some(printer) = self.printer.take() {
            let _ = printer.join();
        }
        if let Some((terminal, mode)) = &self.before {
            // A terminal that is gone needs no mode.
            let _ = tcsetattr(terminal, OptionalActions::Now, mode);
        }
    }
}

/// Copies what the command prints, and after its end the rest.
fn print(host: &OwnedFd, screen: &OwnedFd, has_ended: &AtomicBool) {
    let (mut buffer, mut left) = ([0; 4096], MOST_AFTER_END);
    loop {
        let ended = has_ended.load(Relaxed);
        let pause = if ended { SETTLING } else { PAUSE };
        let ready = poll(&mut [PollFd::new(host, PollFlags::IN)], Some(&pause));
        match ready {
            Ok(0) if ended => return,
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        // An error is the end of all that have the terminal open.
        let Ok(length @ 1..) = rustix::io::read(host, &mut buffer) else { return };
        if ended {
            left = left.saturating_sub(length);
        }
        if left == 0 || write_all(screen, &buffer[..length]).is_err() {
            return;
        }
    }
}

fn write_all(to: impl AsFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&to, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let host = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&host).unwrap();
        unlockpt(&host).unwrap();
        let name = ptsname(&host, Vec::new()).unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        (host, rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty()).unwrap())
    }

    #[test]
    fn hidden_line_is_read_and_not_shown() {
        let (host, terminal) = pair();
        for (typed, expected) in [(&b"123\x7f456\r"[..], Some(b"12456".to_vec())), (b"12\x03", None)] {
            std::thread::scope(|scope| {
                let read = scope.spawn(|| read_hidden(&terminal));
                while tcgetattr(&terminal).unwrap().local_modes.contains(LocalModes::ECHO) {
                    std::thread::yield_now();
                }
                rustix::io::write(&host, typed).unwrap();
                assert_eq!(read.join().unwrap().ok(), expected);
            });
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            assert_eq!(poll(&mut [PollFd::new(&host, PollFlags::IN)], Some(&now)).unwrap(), 0, "it is shown");
            assert!(tcgetattr(&terminal).unwrap().local_modes.contains(LocalModes::ECHO), "the next line is shown");
        }
    }

    #[test]
    fn signal_shows_again_what_is_typed() {
        const CHILD: &str = "TEXTNLP_TEST_HIDDEN";
        if std::env::var_os(CHILD).is_some() {
            let _ = read_hidden(io::stdin());
            return;
        }
        for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
            let (_host, terminal) = pair();
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "own_terminal::tests::signal_shows_again_what_is_typed", "--nocapture"]);
            command.env(CHILD, "1").stdin(Stdio::from(terminal.try_clone().unwrap()));
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let is_shown = || tcgetattr(&terminal).unwrap().local_modes.contains(LocalModes::ECHO);
            while is_shown() {
                assert!(child.try_wait().unwrap().is_none(), "it reads until the signal");
                std::thread::yield_now();
            }
            rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(Exit::Stopped as i32));
            assert!(is_shown());
        }
    }

    #[test]
    fn signal_ends_the_reading_of_a_command_that_goes_on() {
        let (_host, terminal) = pair();
        let (woken, waker) = UnixStream::pair().unwrap();
        drop(waker);
        assert_eq!(read_line(&terminal, &woken).unwrap_err().kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn command_has_another_terminal_than_its_caller() {
        let (host, terminal) = pair();
        let streams = [0; 3].map(|_| terminal.try_clone().unwrap());
        let own = OwnTerminal::between(streams).unwrap().expect("a terminal");
        let mut command = Command::new("sh");
        // It leaves a process behind that holds its terminal.
        command.args(["-c", "sleep 60 & echo pid $!; readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2; echo done"]);
        own.give_to(&mut command).unwrap();
        let mut child = command.spawn().unwrap();
        drop(command);
        let copying = own.copy().unwrap();
        child.wait().unwrap();
        drop(copying);
        // A terminal gives what has arrived, which may be a part of it.
        let mut text = String::new();
        while !text.contains("done") {
            let mut part = [0; 4096];
            let length = rustix::io::read(&host, &mut part).unwrap();
            text.push_str(&String::from_utf8_lossy(&part[..length]));
        }
        let caller = ptsname(&host, Vec::new()).unwrap().into_string().unwrap();
        let pid: i32 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL)
            .unwrap();
        assert!(text.contains("/dev/pts/") && !text.lines().any(|line| line.trim() == caller), "{text}");
    }

    #[test]
    fn streams_without_a_terminal_stay() {
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert!(OwnTerminal::between([file(), file(), file()]).unwrap().is_none());
    }
}
