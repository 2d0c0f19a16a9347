//! The text of the examination, with a line for each finding.

use std::fmt::Write;

use crate::report::text::printable;

use super::{Containment, Examination, Mark, Section};

impl Examination {
    /// Returns the text that `pinfold doctor` prints: a line for each finding, marked with ✓ (good), ✗ (bad) or · (a
    /// fact), the advice in a line of its own, and the containment at the end.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("pinfold {}, as user {}\n", self.facts.pinfold, self.facts.user);
        let mut section = None;
        for finding in &self.findings {
            if section.replace(finding.section) != Some(finding.section) {
                let _ = writeln!(text, "\n{}", title(finding.section));
            }
            let mark = match finding.mark {
                Mark::Good => '✓',
                Mark::Bad => '✗',
                Mark::Note => '·',
            };
            let _ = writeln!(text, "  {mark} {}", printable(&finding.text));
            if let Some(advice) = &finding.advice {
                let _ = writeln!(text, "      → {}", printable(advice));
            }
        }
        let verdict = &self.verdict;
        let _ = writeln!(text, "\nContainment");
        let _ = match (verdict.containment, &verdict.cgroup) {
            (Containment::Cgroup, place) => {
                let place = printable(place.as_deref().unwrap_or("a scope of systemd"));
                writeln!(text, "  ✓ pinfold run uses: cgroup, made in {place} ({})", printable(&verdict.why))
            }
            (Containment::Subreaper, _) => {
                writeln!(text, "  ✗ pinfold run uses: subreaper ({})", printable(&verdict.why))
            }
            (Containment::Nothing, _) => writeln!(text, "  ✗ pinfold run can't run here: {}", printable(&verdict.why)),
        };
        for refusal in &verdict.refused {
            let _ = writeln!(text, "      {}: {}", printable(&refusal.tried), printable(&refusal.reason));
            if !refusal.advice.is_empty() {
                let _ = writeln!(text, "      → {}", printable(&refusal.advice));
            }
        }
        text
    }
}

fn title(section: Section) -> &'static str {
    match section {
        Section::Kernel => "Kernel",
        Section::Cgroup => "Cgroups",
        Section::Systemd => "systemd",
        Section::Container => "Container",
        Section::Proc => "/proc",
        Section::Limits => "Limits",
        Section::Sandbox => "Sandbox",
    }
}
