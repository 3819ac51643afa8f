//! Schemas that were read and are handed out in pages.
//!
//! The reader asks for the next page when it has the last, so only the agent that read the schema buffers
//! it, for a short time and a few at once.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use steep_protocol::message::schema::{SchemaCursor, SchemaPage};
use steep_protocol::{Fault, FaultKind, Retry};

use crate::mutex::lock;

/// The oldest makes room.
const HELD_MAX: usize = 4;

/// How long a reading is kept after its last page was taken.
const HELD_FOR: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct Readings {
    held: Mutex<Vec<Reading>>,
}

#[derive(Debug)]
struct Reading {
    id: u64,
    pages: Vec<SchemaPage>,
    touched: Instant,
}

impl Readings {
    /// The first page of a reading, and the cursor for the next.
    pub(crate) fn begin(&self, mut pages: Vec<SchemaPage>) -> (SchemaPage, Option<SchemaCursor>) {
        if pages.len() <= 1 {
            return (pages.pop().unwrap_or_default(), None);
        }
        let first = std::mem::take(&mut pages[0]);
        let id = rand::random();
        let mut held = self.lock();
        held.retain(|reading| reading.touched.elapsed() < HELD_FOR);
        if held.len() >= HELD_MAX {
            held.remove(0);
        }
        let touched = Instant::now();
        held.push(Reading { id, pages, touched });
        let next = SchemaCursor {
            reading: id,
            page: 1,
        };
        (first, Some(next))
    }

    /// A further page. Fails where the reading has expired or the page was taken.
    pub(crate) fn go_on(
        &self,
        at: SchemaCursor,
    ) -> Result<(SchemaPage, Option<SchemaCursor>), Fault> {
        let gone = || {
            let text = "the schema being read has expired";
            Fault::new(FaultKind::Failed, text)
                .hint("ask again")
                .retry(Retry::Backoff)
        };
        let mut held = self.lock();
        let place = held.iter().position(|reading| reading.id == at.reading);
        let place = place.ok_or_else(gone)?;
        let reading = &mut held[place];
        reading.touched = Instant::now();
        let number = usize::try_from(at.page).map_err(|_| gone())?;
        let page = reading.pages.get_mut(number).ok_or_else(gone)?;
        let page = std::mem::take(page);
        if number + 1 == reading.pages.len() {
            held.remove(place);
            return Ok((page, None));
        }
        let next = SchemaCursor {
            page: at.page + 1,
            ..at
        };
        Ok((page, Some(next)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Reading>> {
        // A critical section always leaves the list whole.
        lock(&self.held)
    }
}

#[cfg(test)]
mod tests {
    use steep_protocol::message::schema::{ObjectKind, ObjectModel};

    use super::*;

    fn page(name: &str) -> SchemaPage {
        SchemaPage {
            tables: Vec::new(),
            objects: vec![ObjectModel {
                kind: ObjectKind::Extension,
                table: None,
                schema: None,
                name: name.to_owned(),
                definition: String::new(),
                rank: 0,
            }],
        }
    }

    #[test]
    fn pages_come_once_each_and_in_order() {
        let readings = Readings::default();
        let (first, next) = readings.begin(vec![page("a"), page("b"), page("c")]);
        assert_eq!(first, page("a"));
        let (second, after) = readings.go_on(next.unwrap()).unwrap();
        assert_eq!(second, page("b"));
        let (third, end) = readings.go_on(after.unwrap()).unwrap();
        assert_eq!((third, end), (page("c"), None));
        assert!(readings.go_on(after.unwrap()).is_err());
        assert_eq!(readings.begin(vec![page("x")]), (page("x"), None));
    }

    #[test]
    fn the_oldest_reading_makes_room_for_the_newest() {
        let readings = Readings::default();
        let begin = || readings.begin(vec![page("a"), page("b")]).1.unwrap();
        let first = begin();
        let later: Vec<_> = (0..HELD_MAX).map(|_| begin()).collect();
        assert!(readings.go_on(first).is_err());
        assert!(readings.go_on(later[HELD_MAX - 1]).is_ok());
    }
}
