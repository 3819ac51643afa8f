//! What is told of the rows that differ: their keys, and in which columns.

use std::collections::BTreeMap;

use steep_protocol::limits::{VERIFY_CELLS, VERIFY_EXAMPLES};
use steep_protocol::message::verify::{
    ColumnDifference, ColumnText, DifferenceKind, RowDifference, RowKey, RowValues, VerifyAsk,
    VerifyReply,
};
use steep_protocol::{Fault, Identifier};

use super::Dial;
use super::pool::{Pool, Subject};
use super::table::Comparison;

type Columns = Option<Vec<ColumnText>>;

impl<A: Dial, B: Dial> Comparison<A, B> {
    /// Adds the columns to the keys.
    pub(super) async fn examples(
        &self,
        of: &Subject,
        mut found: Vec<(DifferenceKind, RowKey)>,
    ) -> Result<Vec<RowDifference>, Fault> {
        found.sort();
        found.truncate(VERIFY_EXAMPLES);
        let keys: Vec<RowKey> = found.iter().map(|(_, key)| key.clone()).collect();
        if of.shape.key.is_empty() || keys.is_empty() {
            let without = |(kind, key)| RowDifference {
                kind,
                key,
                columns: Vec::new(),
            };
            return Ok(found.into_iter().map(without).collect());
        }
        let both = tokio::try_join!(
            self.columns(&self.a, of, &keys, self.values),
            self.columns(&self.b, of, &keys, self.values)
        );
        let (a, b) = both?;
        let rows = found.into_iter().zip(a.into_iter().zip(b));
        let rows = rows.map(|((kind, key), (a, b))| RowDifference {
            columns: differing(&of.shape.columns, kind, (a, b), self.values),
            kind,
            key,
        });
        Ok(rows.collect())
    }

    /// Adds up in which columns these rows differ. A row that is gone by now is not counted.
    pub(super) async fn count_columns(
        &self,
        of: &Subject,
        keys: &[RowKey],
        counts: &mut BTreeMap<Identifier, u64>,
    ) -> Result<(), Fault> {
        for column in self
            .differing_columns(of, keys)
            .await?
            .into_iter()
            .flatten()
        {
            *counts.entry(column).or_default() += 1;
        }
        Ok(())
    }

    /// The columns in which rows with these keys differ, by their places; none of a row that is gone by now.
    pub(super) async fn differing_columns(
        &self,
        of: &Subject,
        keys: &[RowKey],
    ) -> Result<Vec<Vec<Identifier>>, Fault> {
        let (hidden, kind) = (RowValues::Hidden, DifferenceKind::Different);
        let both = tokio::try_join!(
            self.columns(&self.a, of, keys, hidden),
            self.columns(&self.b, of, keys, hidden)
        );
        let (a, b) = both?;
        let named = |(a, b): (Columns, Columns)| match (a, b) {
            (Some(a), Some(b)) => {
                let told = differing(&of.shape.columns, kind, (Some(a), Some(b)), hidden);
                told.into_iter().map(|told| told.column).collect()
            }
            _ => Vec::new(),
        };
        Ok(a.into_iter().zip(b).map(named).collect())
    }

    async fn columns<D: Dial>(
        &self,
        side: &Pool<D>,
        of: &Subject,
        keys: &[RowKey],
        values: RowValues,
    ) -> Result<Vec<Columns>, Fault> {
        let mut all = Vec::with_capacity(keys.len());
        for keys in keys.chunks(rows_at_once(of.shape.columns.len())) {
            let (keys, count) = (keys.to_vec(), keys.len());
            match side.about(of, VerifyAsk::Columns { keys, values }).await? {
                VerifyReply::Columns(found) if found.len() == count => all.extend(found),
                _ => return Err(side.unexpected()),
            }
        }
        Ok(all)
    }
}

/// Rows with that many columns that one answer may have.
pub(super) fn rows_at_once(columns: usize) -> usize {
    (VERIFY_CELLS / columns.max(1)).max(1)
}

/// About how many bytes an example takes.
pub(super) fn size_of(example: &RowDifference) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let columns = example.columns.iter();
    let columns = columns.map(|c| c.column.as_str().len() + text(&c.a) + text(&c.b) + 16);
    example
        .key
        .0
        .iter()
        .map(|part| part.len() + 8)
        .sum::<usize>()
        + columns.sum::<usize>()
        + 16
}

/// The columns that differ; of a row that only one side has, all of them if values are shown.
fn differing(
    names: &[Identifier],
    kind: DifferenceKind,
    (a, b): (Columns, Columns),
    values: RowValues,
) -> Vec<ColumnDifference> {
    let text = |cell: Option<ColumnText>| cell.and_then(|cell| cell.text);
    let pick = |columns: &Columns, at: usize| columns.as_ref().and_then(|c| c.get(at).cloned());
    let one_sided = kind != DifferenceKind::Different;
    if one_sided && values == RowValues::Hidden {
        return Vec::new();
    }
    let cells = names
        .iter()
        .enumerate()
        .map(|(at, name)| (name, pick(&a, at), pick(&b, at)));
    let digest = |cell: &Option<ColumnText>| cell.as_ref().map(|cell| cell.digest);
    let told = cells.filter(|(_, a, b)| one_sided || digest(a) != digest(b));
    told.map(|(name, a, b)| ColumnDifference {
        column: name.clone(),
        a: text(a),
        b: text(b),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(digest: u64, text: &str) -> ColumnText {
        let text = (!text.is_empty()).then(|| text.to_owned());
        ColumnText {
            digest: Some(digest),
            text,
        }
    }

    #[test]
    fn only_columns_that_differ_are_told_and_all_of_a_row_with_one_side() {
        let names: Vec<Identifier> = ["a", "b"].map(|n| Identifier::parse(n).unwrap()).into();
        let (a, b) = (
            Some(vec![cell(1, "x"), cell(2, "y")]),
            Some(vec![cell(1, "x"), cell(3, "z")]),
        );
        let told = differing(
            &names,
            DifferenceKind::Different,
            (a.clone(), b),
            RowValues::Shown,
        );
        let [only] = &told[..] else {
            panic!("{told:?}")
        };
        assert_eq!(
            (only.column.as_str(), only.a.as_deref(), only.b.as_deref()),
            ("b", Some("y"), Some("z"))
        );
        let lone =
            |values| differing(&names, DifferenceKind::Missing, (a.clone(), None), values).len();
        assert_eq!((lone(RowValues::Shown), lone(RowValues::Hidden)), (2, 0));
    }
}
