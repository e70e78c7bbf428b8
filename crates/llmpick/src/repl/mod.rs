//! A conversation on the terminal.

pub mod command;

use std::path::Path;

use llmpick_core::{Message, RouteId, Score};
use rustyline::error::ReadlineError;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Editor, history::DefaultHistory};

use self::command::{Command, Line};
use crate::error::{CliError, ExitCode, Result};
use crate::markdown::MarkdownStream;
use crate::printer::{Printer, dollars, milliseconds};
use crate::talk::{Answer, Ask, Talker};

/// Talks until the person leaves. `ask` holds the options; its messages begin the conversation.
pub async fn converse(talker: &Talker, ask: Ask, history: &Path, printer: Printer) -> Result<()> {
    let mut editor = editor(history)?;
    let mut conversation = Conversation {
        talker,
        ask,
        printer,
        last: None,
    };
    printer.note("Ask something. /help lists the commands, Ctrl-D leaves.");
    loop {
        // The editor blocks; nothing else of ours runs meanwhile.
        let entry = tokio::task::block_in_place(|| editor.readline("> "));
        match entry {
            Ok(entry) => {
                if !entry.trim().is_empty() {
                    // A full disk must not end a conversation.
                    let _ = editor.add_history_entry(&entry);
                    let _ = editor.append_history(history);
                }
                if conversation.take(&entry).await?.is_break() {
                    return Ok(());
                }
            }
            Err(ReadlineError::Interrupted) => printer.note("(Ctrl-D or /quit leaves)"),
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => {
                return Err(CliError::new(
                    ExitCode::Failed,
                    format!("read a line: {error}"),
                ));
            }
        }
    }
}

/// Keeps reading while an entry is open; the editor's other helps are left at nothing.
struct Multiline;

impl rustyline::completion::Completer for Multiline {
    type Candidate = String;
}

impl rustyline::hint::Hinter for Multiline {
    type Hint = String;
}

impl rustyline::highlight::Highlighter for Multiline {}

impl rustyline::Helper for Multiline {}

impl Validator for Multiline {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if command::is_open(context.input()) {
            ValidationResult::Incomplete
        } else {
            ValidationResult::Valid(None)
        })
    }
}

fn editor(history: &Path) -> Result<Editor<Multiline, DefaultHistory>> {
    let failed = |error: ReadlineError| {
        CliError::new(ExitCode::Failed, format!("open the terminal: {error}"))
    };
    let mut editor = Editor::new().map_err(failed)?;
    editor.set_helper(Some(Multiline));
    if let Some(parent) = history.parent() {
        let _ = std::fs::create_dir_all(parent);
    }
    // The first conversation has no history yet.
    let _ = editor.load_history(history);
    Ok(editor)
}

struct Conversation<'a> {
    talker: &'a Talker,
    ask: Ask,
    printer: Printer,
    last: Option<RouteId>,
}

type Flow = std::ops::ControlFlow<()>;

impl Conversation<'_> {
    async fn take(&mut self, entry: &str) -> Result<Flow> {
        match command::parse(entry) {
            Ok(Line::Empty) => {}
            Ok(Line::Say(text)) => self.say(text).await?,
            Ok(Line::Do(Command::Quit)) => return Ok(Flow::Break(())),
            Ok(Line::Do(command)) => {
                if let Err(error) = self.obey(command).await {
                    self.printer.note(&error.to_string());
                }
            }
            Err(why) => self.printer.note(&why),
        }
        Ok(Flow::Continue(()))
    }

    /// Asks, shows the answer as it comes, and keeps both in the conversation.
    async fn say(&mut self, text: String) -> Result<()> {
        self.ask.messages.push(Message::user(text));
        let mut shown = Shown::new(self.printer);
        let mut hear = |piece: &str| shown.push(piece);
        let answer = tokio::select! {
            answer = self.talker.ask(&self.ask, &mut hear) => Some(answer),
            _ = tokio::signal::ctrl_c() => None,
        };
        shown.finish();
        match answer {
            Some(Ok(answer)) => {
                self.printer.note(&footer(&answer));
                self.last = Some(answer.route_id);
                self.ask.messages.push(Message::assistant(answer.text));
            }
            Some(Err(error)) => {
                self.printer.note(&error.to_string());
                self.ask.messages.pop();
            }
            None => {
                self.printer.note("(stopped)");
                self.keep_partial(shown.text);
            }
        }
        Ok(())
    }

    /// What was said before Ctrl-C stays part of the conversation.
    fn keep_partial(&mut self, text: String) {
        if text.is_empty() {
            self.ask.messages.pop();
        } else {
            self.ask.messages.push(Message::assistant(text));
        }
    }

    async fn obey(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Model(None) => {
                let model = self.ask.model.as_deref().unwrap_or("auto");
                self.printer
                    .note(&format!("model: {model}; {}", self.talker.models().await?));
            }
            Command::Model(Some(name)) => {
                self.ask.model = self.talker.check_model(&name).await?;
                self.printer.note(&format!("model: {name}"));
            }
            Command::Route => match self.last {
                Some(route) => self.printer.note(&self.talker.explain(route).await?),
                None => self.printer.note("nothing was answered yet"),
            },
            Command::Grade(score) => self.grade(score).await?,
            Command::System(None) => {
                self.printer
                    .note(self.ask.system.as_deref().unwrap_or("no system message"));
            }
            Command::System(Some(text)) => {
                self.ask.system = Some(text);
                self.printer
                    .note("the system message holds from the next answer on");
            }
            Command::Clear => {
                self.ask.messages.clear();
                self.printer.note("forgotten");
            }
            Command::Save(file) => {
                save(Path::new(&file), &self.ask)?;
                self.printer.note(&format!("saved to {file}"));
            }
            Command::Help => self.printer.note(command::HELP),
            Command::Quit => {}
        }
        Ok(())
    }

    async fn grade(&mut self, score: Score) -> Result<()> {
        let Some(route) = self.last else {
            self.printer.note("nothing was answered yet");
            return Ok(());
        };
        self.talker.feedback(route, score).await?;
        self.printer.note(&format!(
            "{route} has the score {score}; the router learns from it"
        ));
        Ok(())
    }
}

/// One quiet line under an answer.
pub fn footer(answer: &Answer) -> String {
    let score = answer
        .score
        .map(|score| format!(", score {score}"))
        .unwrap_or_default();
    format!(
        "[{} · {} · {} · {}{score}]",
        answer.route_id,
        answer.model,
        milliseconds(answer.latency_ms),
        dollars(answer.cost_usd),
    )
}

/// Writes the conversation: JSON by its ending, otherwise text.
fn save(path: &Path, ask: &Ask) -> Result<()> {
    let messages = ask.all_messages();
    let text = if path.extension().is_some_and(|ending| ending == "json") {
        serde_json::to_string_pretty(&messages)
            .map_err(|error| CliError::new(ExitCode::Failed, format!("write JSON: {error}")))?
    } else {
        let line = |message: &Message| format!("{:?}: {}\n", message.role, message.content);
        messages.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    std::fs::write(path, text).map_err(|error| {
        CliError::new(
            ExitCode::Failed,
            format!("save to {}: {error}", path.display()),
        )
    })
}

/// An answer on its way to the screen: markdown on a terminal, plain text elsewhere.
pub struct Shown {
    printer: Printer,
    markdown: Option<MarkdownStream>,
    /// What was shown, as it came.
    pub text: String,
}

impl Shown {
    /// For the terminal there is now.
    pub fn new(printer: Printer) -> Self {
        let size = || termimad::crossterm::terminal::size().unwrap_or((80, 24));
        let stream = |(columns, rows): (u16, u16)| MarkdownStream::new(columns.into(), rows.into());
        Self {
            printer,
            markdown: printer.is_terminal().then(|| stream(size())),
            text: String::new(),
        }
    }

    /// Shows a piece.
    pub fn push(&mut self, piece: &str) {
        self.text.push_str(piece);
        let shown = match &mut self.markdown {
            Some(markdown) => markdown.push(piece),
            None => piece.to_owned(),
        };
        // A reader that went away is noticed by the last write.
        let _ = self.printer.write(&shown);
    }

    /// Ends the answer on a fresh line.
    pub fn finish(&mut self) {
        let end = match &mut self.markdown {
            Some(markdown) => markdown.finish(),
            None if self.text.is_empty() || self.text.ends_with('\n') => String::new(),
            None => "\n".to_owned(),
        };
        let _ = self.printer.write(&end);
    }
}
