//! `gwctl top`: a full screen of what is going on, until a key ends it.

mod draw;
mod reading;
mod view;

use std::{
    io::{self, Write},
    panic,
    pin::Pin,
    thread,
    time::Duration,
};

use clap::Args;
use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor,
        event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
        execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::Instant,
};

use self::{
    reading::{Reading, Sources},
    view::View,
};
use super::{context::Context, failure::Failure, value};
use crate::api::error::exit;

#[derive(Args, Debug)]
#[command(after_help = "gwctl top\ngwctl top --interval 5")]
pub(super) struct Top {
    /// Seconds between two looks [2]
    #[arg(
        long,
        value_name = "SECS",
        value_parser = value::interval,
        help_heading = super::words::OPTIONS
    )]
    interval: Option<Duration>,
}

/// What a key asks for.
enum Wish {
    Quit,
    Pause,
    Look,
    Redraw,
}

impl Top {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        let refused = |what: &str| Failure::usage(what).hint("`gwctl stats --json` is for programs");
        if context.json {
            return Err(refused("`gwctl top` is a screen and has no JSON"));
        }
        if !context.terminal.out_is_terminal || !context.terminal.in_is_terminal {
            return Err(refused("`gwctl top` needs a terminal"));
        }
        let interval = self.interval.unwrap_or(Duration::from_secs(2));
        let context = &*context;
        // Before the screen is taken: a daemon that is not there is told in a line, as by every command.
        let mut reading = Reading::take(context, None).await?;
        let mut ends = Ends::new()?;
        let screen = Screen::take()?;
        let mut keys = keys(event::read);
        let mut terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        let (mut before, mut failed, mut paused) = (None, None, false);
        let mut coming = look(context, Instant::now() + interval, reading.sources.clone());
        loop {
            let view = View::of(before.as_ref(), &reading, failed.as_deref(), paused, interval);
            terminal.draw(|frame| draw::draw(frame, &view, context.paint))?;
            let wish = tokio::select! {
                event = keys.recv() => match event {
                    Some(event) => wish(&event),
                    None => return Err(Failure::new(exit::UNEXPECTED, "no keys can be read any more")),
                },
                () = ends.wait() => Some(Wish::Quit),
                (took, result) = &mut coming, if !paused => {
                    failed = match result {
                        Ok(now) => {
                            before = Some(std::mem::replace(&mut reading, now));
                            None
                        }
                        // It may be starting again.
                        Err(Failure::Told { message, .. }) => Some(message),
                        Err(gone @ Failure::ReaderGone) => return Err(gone),
                    };
                    // A gateway that takes long to read is read less often.
                    let next = Instant::now() + interval.max(took);
                    coming = look(context, next, reading.sources.clone());
                    None
                }
            };
            match wish {
                Some(Wish::Quit) => break,
                // To clear it would be to ask the terminal where its cursor is, while keys are waited for.
                Some(Wish::Redraw) => {
                    let size = terminal.size()?;
                    terminal.resize(size.into())?;
                }
                Some(Wish::Pause) => {
                    paused = !paused;
                    // What was read in part is of no use later.
                    coming = look(context, Instant::now(), reading.sources.clone());
                }
                Some(Wish::Look) => {
                    paused = false;
                    coming = look(context, Instant::now(), reading.sources.clone());
                }
                None => {}
            }
        }
        drop(screen);
        Ok(())
    }
}

/// A reading that is taken later, and the time that it takes.
type Coming<'a> = Pin<Box<dyn Future<Output = (Duration, Result<Reading, Failure>)> + 'a>>;

fn look<'a>(context: &'a Context<'_, '_>, at: Instant, sources: Option<Sources>) -> Coming<'a> {
    Box::pin(async move {
        tokio::time::sleep_until(at).await;
        let begin = Instant::now();
        let reading = Reading::take(context, sources).await;
        (begin.elapsed(), reading)
    })
}

fn wish(event: &Event) -> Option<Wish> {
    let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event else {
        return matches!(event, Event::Resize(..)).then_some(Wish::Redraw);
    };
    let control = modifiers.contains(KeyModifiers::CONTROL);
    #[expect(clippy::wildcard_enum_match_arm, reason = "a keyboard has many more keys")]
    match code {
        KeyCode::Char('q') | KeyCode::Esc => Some(Wish::Quit),
        KeyCode::Char('c' | 'd') if control => Some(Wish::Quit),
        KeyCode::Char('l') if control => Some(Wish::Redraw),
        KeyCode::Char('p' | ' ') => Some(Wish::Pause),
        KeyCode::Char('r') => Some(Wish::Look),
        _ => None,
    }
}

/// Reads keys on a thread of its own, which ends with the process. Nothing comes any more once the terminal is gone.
fn keys(mut read: impl FnMut() -> io::Result<Event> + Send + 'static) -> mpsc::UnboundedReceiver<Event> {
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::spawn(move || {
        while let Ok(event) = read() {
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Signals that end the program: they must not leave the terminal as it is.
struct Ends([Signal; 3]);

impl Ends {
    fn new() -> io::Result<Self> {
        let [terminate, hangup, interrupt] =
            [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()].map(signal);
        Ok(Self([terminate?, hangup?, interrupt?]))
    }

    async fn wait(&mut self) {
        let [terminate, hangup, interrupt] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

/// The whole screen of the terminal, until it is dropped. A panic gives it back, too, before it is told.
struct Screen;

impl Screen {
    fn take() -> io::Result<Self> {
        before_panics(give_back);
        enable_raw_mode()?;
        let screen = Self;
        execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Does that before a panic is told, on whatever thread it is.
fn before_panics(act: impl Fn() + Send + Sync + 'static) {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        act();
        before(info);
    }));
}

/// Nothing is left to be done about a terminal that does not take it.
fn give_back() {
    let _ = disable_raw_mode();
    let mut out = io::stdout();
    let _ = execute!(out, LeaveAlternateScreen, cursor::Show);
    let _ = out.flush();
}

#[cfg(test)]
mod tests;
