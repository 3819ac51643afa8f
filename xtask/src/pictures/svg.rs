//! Renders a terminal's screen as SVG, with scalable and selectable text. Pure.

use std::fmt::Write as _;

use vt100::{Cell, Color, Screen};

/// The size of a cell, in units of the picture. Fonts differ, so every run of text is stretched to
/// its cells.
const CELL: (f64, f64) = (8.4, 18.0);

/// The margin around the text.
const MARGIN: f64 = 14.0;

/// The height of the bar with the command.
const BAR: f64 = 34.0;

const FONT: f64 = 14.0;

const BACKGROUND: &str = "#16181d";
const FOREGROUND: &str = "#d6d9e0";
const TITLE_BAR: &str = "#262a33";

/// The sixteen colours of terminals, for a dark background.
const PALETTE: [&str; 16] = [
    "#3b4048", "#e5646e", "#8fc47a", "#dfbf6b", "#6aa8ee", "#c283dc", "#55b9c4", "#c9ced8",
    "#656d7a", "#f0848d", "#a9d896", "#ecd28c", "#8cbef5", "#d4a3e8", "#7dd0d9", "#ffffff",
];

/// The style of a cell.
#[derive(Debug, Clone, PartialEq)]
struct Look {
    foreground: String,
    background: Option<String>,
    bold: bool,
    dim: bool,
}

/// Renders the screen below a bar with the command, without trailing empty lines.
pub(super) fn picture(command: &str, screen: &Screen) -> String {
    let (lines, columns) = screen.size();
    let used = (0..lines)
        .rev()
        .find(|line| (0..columns).any(|column| is_seen(screen.cell(*line, column))))
        .map_or(1, |line| line + 1);
    let width = f64::from(columns) * CELL.0 + 2.0 * MARGIN;
    let height = BAR + f64::from(used) * CELL.1 + 2.0 * MARGIN;
    let command = escaped(command);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" \
         font-family=\"ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace\" \
         font-size=\"{FONT}\">\n<title>{command}</title>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n\
         <path d=\"M0 8a8 8 0 0 1 8-8h{:.0}a8 8 0 0 1 8 8v{:.0}h-{width:.0}z\" fill=\"{TITLE_BAR}\"/>\n\
         <text x=\"{MARGIN}\" y=\"22\" fill=\"{FOREGROUND}\" xml:space=\"preserve\">$ {command}</text>\n",
        width - 16.0,
        BAR - 8.0,
    );
    for line in 0..used {
        runs(screen, line, columns, &mut svg);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Renders a line, joining cells of one style.
fn runs(screen: &Screen, line: u16, columns: u16, svg: &mut String) {
    let mut column = 0;
    while column < columns {
        let look = look(screen.cell(line, column));
        let begin = column;
        let mut text = String::new();
        while column < columns && self::look(screen.cell(line, column)) == look {
            match screen.cell(line, column) {
                // The previous cell holds the character.
                Some(cell) if cell.is_wide_continuation() => {}
                Some(cell) if cell.has_contents() => text.push_str(cell.contents()),
                Some(_) | None => text.push(' '),
            }
            column += 1;
        }
        run(&look, &text, (line, begin, column - begin), svg);
    }
}

fn run(look: &Look, text: &str, (line, column, cells): (u16, u16, u16), svg: &mut String) {
    let x = MARGIN + f64::from(column) * CELL.0;
    let y = BAR + MARGIN + f64::from(line) * CELL.1;
    let length = f64::from(cells) * CELL.0;
    let dim = if look.dim { " opacity=\"0.6\"" } else { "" };
    if let Some(background) = &look.background {
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{}\" fill=\"{background}\"{dim}/>",
            CELL.1
        );
    }
    if text.trim().is_empty() {
        return;
    }
    let bold = if look.bold {
        " font-weight=\"bold\""
    } else {
        ""
    };
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{:.1}\" textLength=\"{length:.1}\" fill=\"{}\"{bold}{dim} \
         xml:space=\"preserve\">{}</text>",
        y + FONT,
        look.foreground,
        escaped(text)
    );
}

fn look(cell: Option<&Cell>) -> Look {
    let Some(cell) = cell else {
        return Look {
            foreground: FOREGROUND.to_owned(),
            background: None,
            bold: false,
            dim: false,
        };
    };
    let foreground = colour(cell.fgcolor()).unwrap_or_else(|| FOREGROUND.to_owned());
    let background = colour(cell.bgcolor());
    let (foreground, background) = if cell.inverse() {
        let under = background.unwrap_or_else(|| BACKGROUND.to_owned());
        (under, Some(foreground))
    } else {
        (foreground, background)
    };
    Look {
        foreground,
        background,
        bold: cell.bold(),
        dim: cell.dim(),
    }
}

/// `None` for the terminal's default.
fn colour(colour: Color) -> Option<String> {
    match colour {
        Color::Default => None,
        Color::Idx(index @ 0..16) => Some(PALETTE[usize::from(index)].to_owned()),
        Color::Idx(index @ 16..232) => {
            // A cube of six levels for each of red, green and blue: 0, 95, 135, 175, 215, 255.
            let level = |step: u8| {
                if step == 0 {
                    0
                } else {
                    55 + 40 * u32::from(step)
                }
            };
            let index = index - 16;
            let [red, green, blue] = [index / 36, index / 6 % 6, index % 6].map(level);
            Some(format!("#{red:02x}{green:02x}{blue:02x}"))
        }
        Color::Idx(index) => {
            let grey = 8 + 10 * u32::from(index - 232);
            Some(format!("#{grey:02x}{grey:02x}{grey:02x}"))
        }
        Color::Rgb(red, green, blue) => Some(format!("#{red:02x}{green:02x}{blue:02x}")),
    }
}

fn is_seen(cell: Option<&Cell>) -> bool {
    cell.is_some_and(|cell| {
        !cell.contents().trim().is_empty() || cell.inverse() || cell.bgcolor() != Color::Default
    })
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &str) -> String {
        let mut parser = vt100::Parser::new(4, 12, 0);
        parser.process(bytes.as_bytes());
        picture("a <b>", parser.screen())
    }

    #[test]
    fn runs_keep_their_looks_and_empty_lines_at_the_end_are_left_out() {
        let svg = of("ab\x1b[1;31mcd\x1b[0m\r\n\x1b[7mx\x1b[0m & <y>");
        assert!(svg.contains(">$ a &lt;b&gt;</text>"), "{svg}");
        assert!(
            svg.contains(&format!("fill=\"{FOREGROUND}\" xml:space=\"preserve\">ab<")),
            "{svg}"
        );
        let red = format!(
            "fill=\"{}\" font-weight=\"bold\" xml:space=\"preserve\">cd<",
            PALETTE[1]
        );
        assert!(svg.contains(&red), "{svg}");
        assert!(
            svg.contains(&format!("fill=\"{BACKGROUND}\" xml:space=\"preserve\">x<")),
            "{svg}"
        );
        assert!(svg.contains(" &amp; &lt;y&gt;"), "{svg}");
        // Two lines of text and the bar, not four.
        let height = BAR + 2.0 * CELL.1 + 2.0 * MARGIN;
        assert!(svg.contains(&format!("height=\"{height:.0}\"")), "{svg}");
    }

    #[test]
    fn all_colours_of_terminals_have_one_here() {
        assert_eq!(colour(Color::Idx(16)).unwrap(), "#000000");
        assert_eq!(colour(Color::Idx(231)).unwrap(), "#ffffff");
        assert_eq!(colour(Color::Idx(255)).unwrap(), "#eeeeee");
        assert_eq!(colour(Color::Rgb(1, 2, 3)).unwrap(), "#010203");
        for index in 0..=255 {
            assert_eq!(colour(Color::Idx(index)).unwrap().len(), 7);
        }
    }
}
