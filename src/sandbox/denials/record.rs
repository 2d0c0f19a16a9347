//! The refusals of one job, counted.

use crate::report::Denial;

/// The most refusals that a report lists. A job can make any number of them.
const LISTED: usize = 100;

/// The refusals so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Different refusals, in the order in which they first occurred.
    pub denials: Vec<Denial>,
    /// The number of refused calls that are not in the list.
    pub left_out: u64,
    /// Why pinfold could not look at the first call that it could not look at.
    pub trouble: Option<String>,
}

impl Record {
    /// Counts a refusal.
    pub fn add(&mut self, denial: Denial) {
        let same = |known: &&mut Denial| {
            known.kind == denial.kind && known.object == denial.object && known.call == denial.call
        };
        if let Some(known) = self.denials.iter_mut().find(same) {
            known.count += denial.count;
        } else if self.denials.len() < LISTED {
            self.denials.push(denial);
        } else {
            self.left_out += denial.count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::DenialKind;

    #[test]
    fn equal_refusals_are_counted_and_the_list_is_bounded() {
        let mut record = Record::default();
        let read = |path: usize| Denial::new(DenialKind::Read, format!("/{path}"), "open", Vec::new());
        for _ in 0..3 {
            (0..LISTED + 5).for_each(|path| record.add(read(path)));
        }
        record.add(Denial::new(DenialKind::Read, "/1", "openat", Vec::new()));
        assert_eq!((record.denials.len(), record.left_out), (LISTED, 16));
        assert!(record.denials.iter().all(|denial| denial.count == 3));
    }
}
