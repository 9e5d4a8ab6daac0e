//! Colour, where there is any.

use std::fmt::Display;

use anstyle::{AnsiColor, Style};

/// What a piece of text means; the colour follows from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// A heading.
    Heading,
    /// As it should be.
    Good,
    /// Worth a look.
    Notice,
    /// Wrong.
    Bad,
    /// Of little interest.
    Faint,
}

impl Tone {
    const fn style(self) -> Style {
        let style = Style::new();
        match self {
            Self::Plain => style,
            Self::Heading => style.bold(),
            Self::Good => style.fg_color(Some(anstyle::Color::Ansi(AnsiColor::Green))),
            Self::Notice => style.fg_color(Some(anstyle::Color::Ansi(AnsiColor::Yellow))),
            Self::Bad => style.fg_color(Some(anstyle::Color::Ansi(AnsiColor::Red))).bold(),
            Self::Faint => style.dimmed(),
        }
    }
}

/// Applies tones, or leaves text as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint {
    enabled: bool,
}

impl Paint {
    /// Colours if `enabled`.
    pub const fn new(enabled: bool) -> Self {
        Self { enabled }
    }

    /// Whether there are colours.
    pub const fn is_enabled(self) -> bool {
        self.enabled
    }

    /// `text` in `tone`.
    pub fn text(self, tone: Tone, text: impl Display) -> String {
        if self.enabled && tone != Tone::Plain {
            let style = tone.style();
            format!("{style}{text}{style:#}")
        } else {
            text.to_string()
        }
    }
}
