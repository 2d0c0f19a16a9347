//! The list of one job's denials, each with a count.

use crate::report::Denial;

/// The maximum number of different denials in a report. The limit bounds pinfold's memory, because a job can cause any
/// number of them.
const MAX_LISTED: usize = 100;

/// The denials so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Different denials, in the order in which they first occurred.
    pub denials: Vec<Denial>,
    /// The number of refused calls that `denials` does not contain.
    pub left_out: u64,
    /// The first error that prevented pinfold from inspecting a call.
    pub error: Option<String>,
}

impl Record {
    /// Adds a denial. If an equal one is already in the list, only its count increases.
    pub fn add(&mut self, denial: Denial) {
        let same = |known: &&mut Denial| {
            known.kind == denial.kind && known.object == denial.object && known.call == denial.call
        };
        if let Some(known) = self.denials.iter_mut().find(same) {
            known.count += denial.count;
        } else if self.denials.len() < MAX_LISTED {
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
    fn equal_denials_are_counted_and_the_list_is_bounded() {
        let mut record = Record::default();
        let read = |path: usize| Denial::new(DenialKind::Read, format!("/{path}"), "open", Vec::new());
        for _ in 0..3 {
            (0..MAX_LISTED + 5).for_each(|path| record.add(read(path)));
        }
        record.add(Denial::new(DenialKind::Read, "/1", "openat", Vec::new()));
        assert_eq!((record.denials.len(), record.left_out), (MAX_LISTED, 16));
        assert!(record.denials.iter().all(|denial| denial.count == 3));
    }
}
