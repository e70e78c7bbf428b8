//! The slash commands of a conversation.

use llmpick_core::Score;

/// What a line of the conversation is.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// Something to answer.
    Say(String),
    /// A command.
    Do(Command),
    /// Nothing.
    Empty,
}

/// A slash command.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Show or change the model; `auto` routes.
    Model(Option<String>),
    /// Why the last answer came from where it came.
    Route,
    /// Grade the last answer.
    Grade(Score),
    /// Show or change the system message.
    System(Option<String>),
    /// Forget the conversation.
    Clear,
    /// Write the conversation to a file.
    Save(String),
    /// List the commands.
    Help,
    /// Leave.
    Quit,
}

/// Shown by `/help`.
pub const HELP: &str = "\
/model [NAME|auto]   show or change the model; auto lets the router choose
/route               why the last answer came from that model
/good, /bad          grade the last answer; the router learns from it
/system [TEXT]       show or change the system message
/clear               forget the conversation
/save FILE           write the conversation to FILE (.json, or text)
/help                this list
/quit, Ctrl-D        leave

A line that ends with \\ goes on in the next one; \"\"\" begins and ends a block of lines.
Ctrl-C stops the answer.";

/// Reads one entry; an unknown or incomplete command is told what to type.
pub fn parse(entry: &str) -> Result<Line, String> {
    let entry = entry.trim();
    if entry.is_empty() {
        return Ok(Line::Empty);
    }
    let Some(command) = entry.strip_prefix('/') else {
        return Ok(Line::Say(unfold(entry)));
    };
    let (name, argument) = command
        .split_once(char::is_whitespace)
        .unwrap_or((command, ""));
    let argument = Some(argument.trim()).filter(|argument| !argument.is_empty());
    let command = match (name, argument) {
        ("model", argument) => Command::Model(argument.map(str::to_owned)),
        ("route", _) => Command::Route,
        ("good", _) => Command::Grade(Score::from_correct(true)),
        ("bad", _) => Command::Grade(Score::from_correct(false)),
        ("system", argument) => Command::System(argument.map(str::to_owned)),
        ("clear", _) => Command::Clear,
        ("save", Some(file)) => Command::Save(file.to_owned()),
        ("save", None) => return Err("say where: /save FILE".to_owned()),
        ("help" | "?", _) => Command::Help,
        ("quit" | "exit" | "bye", _) => Command::Quit,
        (other, _) => return Err(format!("there is no /{other}; /help lists what there is")),
    };
    Ok(Line::Do(command))
}

/// True while an entry needs another line.
pub fn is_open(entry: &str) -> bool {
    entry.matches("\"\"\"").count() % 2 == 1 || entry.ends_with('\\')
}

/// The text that was meant: without the marks that held several lines together.
fn unfold(entry: &str) -> String {
    let block = entry
        .strip_prefix("\"\"\"")
        .and_then(|rest| rest.strip_suffix("\"\"\""));
    match block {
        Some(block) => block.trim_matches('\n').to_owned(),
        None => entry.replace("\\\n", "\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        let check = |entry: &str, line: Line| assert_eq!(parse(entry), Ok(line), "{entry}");
        check("", Line::Empty);
        check("hello /help", Line::Say("hello /help".into()));
        check("/model auto", Line::Do(Command::Model(Some("auto".into()))));
        check("/model", Line::Do(Command::Model(None)));
        check("/bad", Line::Do(Command::Grade(Score::from_correct(false))));
        check(
            "/system Be  brief. ",
            Line::Do(Command::System(Some("Be  brief.".into()))),
        );
        check("/save a b.txt", Line::Do(Command::Save("a b.txt".into())));
        assert!(parse("/save").is_err());
        assert!(parse("/modle x").is_err_and(|why| why.contains("/help")));
    }

    #[test]
    fn several_lines_are_one_entry() {
        assert!(is_open("first \\"));
        assert!(is_open("\"\"\"\nfirst"));
        assert!(!is_open("\"\"\"\nfirst\nsecond\"\"\""));
        assert_eq!(
            parse("first\\\nsecond"),
            Ok(Line::Say("first\nsecond".into()))
        );
        assert_eq!(
            parse("\"\"\"\na\n\nb\n\"\"\""),
            Ok(Line::Say("a\n\nb".into()))
        );
    }
}
