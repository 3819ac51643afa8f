//! Columns that line up.

use console::measure_text_width;

use super::Paint;

/// Rows under a header, columns two spaces apart, no space at the ends of lines.
pub(super) fn table(header: &[&str], rows: &[Vec<String>], paint: Paint) -> String {
    let widths: Vec<usize> = header
        .iter()
        .enumerate()
        .map(|(column, title)| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| measure_text_width(cell))
                .max()
                .unwrap_or(0)
                .max(title.len())
        })
        .collect();
    let header: Vec<String> = header.iter().map(|title| paint.dim(title)).collect();
    let lines = std::iter::once(&header).chain(rows).map(|row| {
        let mut line = String::new();
        let mut gap = 0;
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&" ".repeat(gap));
            line.push_str(cell);
            gap = width.saturating_sub(measure_text_width(cell)) + 2;
        }
        line
    });
    lines.map(|line| line + "\n").collect()
}

/// Pairs of a name and a text, texts lined up and their further lines indented alike.
pub(super) fn pairs(pairs: &[(&str, String)], indent: usize, paint: Paint) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in pairs {
        let name = paint.dim(&format!("{name:<width$}"));
        let hang = format!("\n{}", " ".repeat(indent + width + 2));
        text.push_str(&" ".repeat(indent));
        text.push_str(&format!("{name}  {}\n", value.replace('\n', &hang)));
    }
    text
}
