//! `gwctl top` on a terminal: what its screen shows, and that it leaves the terminal as it was.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    num::NonZero,
    os::fd::{AsFd as _, OwnedFd},
    process::{Child, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    pty::{Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, tcgetattr},
    },
    unistd::Pid,
};

use crate::{
    support::{Daemon, gwctl},
    talk::{let_packets_pass, set_up},
};

/// The screen's size: the least that has to be readable.
const ROWS: NonZero<u16> = NonZero::new(24).expect("a number of rows");
const COLUMNS: NonZero<u16> = NonZero::new(80).expect("a number of columns");

/// How long the screen may take to show something.
const PATIENCE: Duration = Duration::from_secs(20);

/// A terminal with `gwctl top` on it.
struct Screen {
    child: Child,
    terminal: OwnedFd,
    keyboard: File,
    output: Receiver<Vec<u8>>,
    parser: vt100::Parser,
}

impl Screen {
    fn start(daemon: &Daemon) -> Result<Self> {
        let size = Winsize { ws_row: ROWS.get(), ws_col: COLUMNS.get(), ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).context("no pseudo-terminal")?;
        let stream = || -> Result<Stdio> { Ok(pty.slave.try_clone()?.into()) };
        let mut command = gwctl(&daemon.socket())?;
        command.args(["top", "--interval", "0.2"]).env("TERM", "xterm");
        let child = command.stdin(stream()?).stdout(stream()?).stderr(stream()?).spawn()?;
        let keyboard = File::from(pty.master);
        let mut screen = keyboard.try_clone()?;
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = screen.read(&mut bytes) {
                if sender.send(bytes[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            terminal: pty.slave,
            keyboard,
            output,
            parser: vt100::Parser::new(ROWS, COLUMNS, 0),
        })
    }

    /// Reads until the screen is as wanted.
    fn until(&mut self, what: &str, wanted: impl Fn(&vt100::Screen) -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !wanted(self.parser.screen()) {
            let left = end.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "no {what} on the screen:\n{}", self.parser.screen().contents());
            if let Ok(bytes) = self.output.recv_timeout(left) {
                self.parser.process(&bytes);
            }
        }
        Ok(())
    }

    fn shows(&mut self, text: &str) -> Result<()> {
        self.until(text, |screen| screen.contents().contains(text))
    }

    fn is_raw(&self) -> Result<bool> {
        Ok(!tcgetattr(self.terminal.as_fd())?.local_flags.contains(LocalFlags::ICANON))
    }

    /// Waits for the end, after which the terminal has to be as it was.
    fn ended(mut self) -> Result<()> {
        self.until("end of the full screen", |screen| !screen.alternate_screen() && !screen.hide_cursor())?;
        let status = self.child.wait()?;
        ensure!(status.code() == Some(0), "{status}");
        ensure!(!self.is_raw()?, "the terminal is still raw");
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Where a test has failed.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[test]
fn top_shows_the_gateway_until_a_key_ends_it() -> Result<()> {
    let daemon = set_up()?;
    let_packets_pass(&daemon)?;
    let mut screen = Screen::start(&daemon)?;
    // The second look has rates, all of which are 0.
    let rated =
        |row: String| row.split_whitespace().collect::<Vec<_>>() == ["eth1", "out", "reply", "0", "0"];
    screen.until("rates", |screen| screen.rows(0, COLUMNS.get()).any(rated))?;
    screen.keyboard.write_all(b"p")?;
    screen.shows("PAUSED")?;
    assert!(screen.parser.screen().alternate_screen() && screen.is_raw()?);
    let rows = screen.parser.screen().rows(0, COLUMNS.get()).map(|row| row.trim_end().to_owned());
    let mut rows: Vec<String> = rows.collect();
    let (head, _) = rows[0].split_once("  up ").context("no uptime in the first line")?;
    rows[0] = format!("{head}  up TIME");
    insta::assert_snapshot!(rows.join("\n"));
    // Drawn anew: nothing of what is there stays.
    screen.parser = vt100::Parser::new(ROWS, COLUMNS, 0);
    screen.keyboard.write_all(b"\x0c")?;
    screen.shows("PAUSED")?;
    screen.keyboard.write_all(b"p")?;
    screen.shows("p pause")?;
    screen.keyboard.write_all(b"q")?;
    screen.ended()
}

#[test]
fn top_gives_the_terminal_back_when_it_is_terminated() -> Result<()> {
    let daemon = set_up()?;
    let mut screen = Screen::start(&daemon)?;
    screen.shows("q quit")?;
    kill(Pid::from_raw(i32::try_from(screen.child.id())?), Signal::SIGTERM)?;
    screen.ended()
}

#[test]
fn top_without_a_terminal_says_what_to_do_instead() -> Result<()> {
    let daemon = set_up()?;
    for (line, why) in [("top", "needs a terminal"), ("top --json", "has no JSON")] {
        let said = daemon.run(line)?;
        assert_eq!((said.code, said.out.as_str()), (2, ""));
        assert!(said.err.contains(why) && said.err.contains("hint: `gwctl stats --json`"), "{said:?}");
    }
    Ok(())
}
