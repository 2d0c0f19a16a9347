//! The usual arguments of `pinfold run`, parsed without clap. Before clap parses anything, it builds a table of all
//! options with their help texts, which takes a tenth of the time of a short run.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use crate::cli::duration;

use super::args::Args;

/// Parses the words after `run`, if they contain no options other than those below, in their plainest form. Returns
/// `None` for all other words, and for words that are an error: clap parses those, and reports the error.
pub fn parse(words: &[OsString]) -> Option<Args> {
    let mut args = Args::without_options();
    let (mut grace, mut kill_bound, mut settle) = (None, None, None);
    let mut rest = words;
    while let Some((word, after)) = rest.split_first()
        && word.as_bytes().starts_with(b"-")
    {
        rest = after;
        match word.to_str()? {
            "--" => break,
            "--quiet" | "-q" => set(&mut args.quiet)?,
            "--verbose" | "-v" => set(&mut args.verbose)?,
            "--stats" => set(&mut args.stats)?,
            "--fail-on-leftovers" => set(&mut args.fail_on_leftovers)?,
            "--timeout" | "-t" => take(&mut args.timeout, &mut rest, duration::limit)?,
            "--grace" => take(&mut grace, &mut rest, duration::parse)?,
            "--kill-bound" => take(&mut kill_bound, &mut rest, duration::parse)?,
            "--settle" => take(&mut settle, &mut rest, duration::parse)?,
            _ => return None,
        }
    }
    if rest.is_empty() || args.quiet && args.verbose {
        return None;
    }
    args.grace = grace.unwrap_or(args.grace);
    args.kill_bound = kill_bound.unwrap_or(args.kill_bound);
    args.settle = settle.unwrap_or(args.settle);
    args.command = rest.to_vec();
    Some(args)
}

/// Sets a flag. Returns `None` if it was set before: an option that is given twice is an error.
fn set(flag: &mut bool) -> Option<()> {
    (!std::mem::replace(flag, true)).then_some(())
}

/// Takes the next word as the value of an option. Returns `None` if the value is missing or invalid, or if the option was
/// given before.
fn take(
    value: &mut Option<Duration>,
    rest: &mut &[OsString],
    parse: impl Fn(&str) -> Result<Duration, String>,
) -> Option<()> {
    let (word, after) = rest.split_first()?;
    *rest = after;
    let text = word.to_str().filter(|text| !text.starts_with('-'))?;
    value.replace(parse(text).ok()?).is_none().then_some(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use clap::Parser;
    use proptest::prelude::*;

    use super::*;

    #[derive(Parser)]
    struct ByClap {
        #[command(flatten)]
        args: Args,
    }

    /// Parses the words in both ways, and checks that the results are equal. Returns whether this parser accepts the
    /// words.
    fn compare(words: &[OsString]) -> bool {
        let Some(args) = parse(words) else { return false };
        let all = [OsString::from("pinfold")].into_iter().chain(words.iter().cloned());
        let by_clap = ByClap::try_parse_from(all).map(|by_clap| by_clap.args);
        assert_eq!(format!("{args:?}"), by_clap.map_or_else(|error| error.to_string(), |args| format!("{args:?}")));
        true
    }

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(|word| if word == "''" { "".into() } else { word.into() }).collect()
    }

    #[test]
    fn usual_arguments_have_the_same_result_as_with_clap() {
        for line in [
            "true",
            "-- true",
            "-- -- true",
            "-- -t 1",
            "true -- -t 1",
            "true -t 1 --nosuch",
            "'' -t",
            "-q true",
            "-v -- true",
            "--stats --fail-on-leftovers --quiet cat - x",
            "-t 1 --grace 2 --settle 0 --kill-bound 1h30m sleep 5",
            "--timeout 0 -- sleep 5",
        ] {
            assert!(compare(&words(line)), "{line}");
        }
        assert!(compare(&[OsString::from_vec(b"\xff".to_vec()), "x".into()]));
    }

    #[test]
    fn other_arguments_are_left_to_clap() {
        for line in [
            "--",
            "-t",
            "-t 1",
            "-t x true",
            "-t -1 true",
            "-t1 true",
            "--timeout=1 true",
            "-t 1 --timeout 2 true",
            "-q -q true",
            "-q -v true",
            "--settle 1 --settle 1 true",
            "--sandbox true",
            "--nosuch true",
            "--help",
            "-h",
            "-",
        ] {
            assert!(!compare(&words(line)), "{line}");
        }
        assert!(parse(&[]).is_none());
    }

    proptest! {
        #[test]
        fn what_this_parser_accepts_clap_accepts_too(words in prop::collection::vec(
            prop::sample::select(vec![
                "--", "-", "-q", "-v", "-t", "--timeout", "--grace", "--settle", "--kill-bound", "--stats", "--report",
                "--fail-on-leftovers", "1", "0", "2s", "inf", "x", "true", "", "-qv", "-t1", "--settle=1",
            ]),
            0..6,
        )) {
            let words: Vec<_> = words.into_iter().map(OsString::from).collect();
            compare(&words);
        }
    }
}
