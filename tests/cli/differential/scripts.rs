//! Shell scripts that are generated from a seed. Each script gives the same result each time it runs alone, ends by
//! itself, and waits for everything that it starts except filters, which end when their input ends.

use crate::support::random::Random;

/// A script, in parts that can be removed one by one.
#[derive(Clone, Debug)]
pub struct Script {
    /// Runs first: limits, and filters for the rest of the script.
    pub opening: &'static str,
    pub pieces: Vec<String>,
    pub ending: String,
    /// The signal that the script receives from outside after it has printed `armed`, and the delay in microseconds.
    pub signal: Option<(&'static str, u64)>,
    /// Whether standard output and standard error are the same pipe. Then their order is compared too.
    pub merged: bool,
}

/// Waits until a background process has executed `sleep`: until then it is a copy of the shell, with its traps.
const ASLEEP: &str = "asleep() { local name=; until [ \"$name\" = sleep ]; do read -r name < /proc/$1/comm; done; }";

impl Script {
    pub fn text(&self) -> String {
        let parts = std::iter::once(self.opening).chain(self.pieces.iter().map(String::as_str)).chain([&*self.ending]);
        let parts: Vec<_> = parts.filter(|part| !part.is_empty()).collect();
        format!("ulimit -c 0\n{ASLEEP}\n{}\n", parts.join("\n"))
    }

    pub fn signals_its_group(&self) -> bool {
        self.ending.contains("kill -TERM 0")
    }

    /// Generates the script of this seed.
    pub fn generate(seed: u64) -> Self {
        let mut random = Random::from_seed(seed);
        let merged = random.below(2) == 0;
        // The output of a filter and the output beside it have no defined order, with or without pinfold.
        let from_outside = random.below(4) == 0;
        // The script must print `armed` straight to standard output, because that is the moment at which the signal is
        // sent.
        let openings = if from_outside { OPENINGS_THAT_PASS } else { OPENINGS };
        let opening = if !merged && random.below(3) == 0 { *pick(&mut random, openings) } else { "" };
        let count = 2 + random.below(5);
        let pieces: Vec<_> = (0..count).map(|number| piece(&mut random, number, 2)).collect();
        let (ending, signal) = if from_outside {
            let (signal, handler) = *pick(&mut random, RECEIVED);
            (fill(&mut random, handler, count), Some((signal, random.below(15_000))))
        } else {
            // A signal to the process group would race with a filter that has not finished.
            let filters = opening.contains(">(") || pieces.iter().any(|piece| piece.contains(">("));
            let endings = if filters { &ENDINGS[GROUP_ENDINGS..] } else { ENDINGS };
            let ending = *pick(&mut random, endings);
            (fill(&mut random, ending, count), None)
        };
        Self { opening, pieces, ending, signal, merged }
    }
}

fn pick<'a, T>(random: &mut Random, list: &'a [T]) -> &'a T {
    &list[random.below(list.len() as u64) as usize]
}

/// Returns one piece, which may be inside another construct.
fn piece(random: &mut Random, number: u64, depth: u32) -> String {
    if depth > 0 && random.below(4) == 0 {
        let inner = piece(random, number, depth - 1);
        return pick(random, WRAPPERS).replace("@piece", &inner).replace("@i", &number.to_string());
    }
    let kind = *pick(random, KINDS);
    let template = *pick(random, kind);
    fill(random, template, number)
}

/// Replaces `@i` (the number of the piece), `@n` (a count), `@c` (an exit code), `@d` (a moment, in seconds), `@s` and
/// `@t` (signals; `@t` those that a background process does not ignore).
fn fill(random: &mut Random, template: &str, number: u64) -> String {
    let signal = *pick(random, &["HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "ALRM"]);
    let deadly = *pick(random, &["HUP", "TERM", "USR1", "USR2", "KILL", "ALRM"]);
    template
        .replace("@i", &number.to_string())
        .replace("@n", &(1 + random.below(20)).to_string())
        .replace("@c", &random.below(256).to_string())
        .replace("@d", &format!("0.{:03}", random.below(25)))
        .replace("@s", signal)
        .replace("@t", deadly)
}

const OPENINGS_THAT_PASS: &[&str] = &[
    "exec > >(tee log)",
    "exec 2> >(tee -a errors >&2)",
    "exec > >(while read -r line; do printf '%s\\n' \"$line\"; done)",
    "exec 3> >(gzip -n > log.gz); seq 1000 >&3",
];

const OPENINGS: &[&str] = &[
    "exec > >(tee log)",
    "exec > >(sed 's/^/out: /')",
    "exec 2> >(tee -a errors >&2)",
    "exec > >(gzip -n > log.gz)",
    "exec > >(while read -r line; do printf '%s\\n' \"$line\"; done)",
    "exec > >(tee >(wc -c > count) > log); exec 2> >(tac >&2)",
    "set -o pipefail",
    "trap 'echo \"the end\"' EXIT",
];

const WRAPPERS: &[&str] = &[
    "(\n@piece\n)",
    // Both streams go through `cat`, because output through `cat` would race with output beside it.
    "{\n@piece\n} 2>&1 | cat",
    "{\n@piece\n} > inner-@i 2>&1\ncat inner-@i",
    "wrapped() {\n@piece\n}\nwrapped",
    "text=$(\n@piece\n)\necho \"$text\" | tr -d '\\0'",
    "if :; then\n@piece\nfi",
    "{\n@piece\n} &\nwait $!\necho \"status $?\"",
    "cat <(\n{\n@piece\n} 2>&1\n)",
];

const KINDS: &[&[&str]] =
    &[PLAIN, PIPES, HERE_DOCUMENTS, TRAPS, BACKGROUND, COPROCESSES, SUBSTITUTIONS, JOB_CONTROL, REDIRECTIONS, SIGNALS];

const PLAIN: &[&str] = &[
    "echo 'word @n'; echo 'to standard error @n' >&2",
    "printf '\\033[1m%s\\377\\n' @n",
    "for k in $(seq @n); do echo out$k; echo err$k >&2; done",
    "cat missing-@i; echo \"status $?\"",
    "(exit @c); echo \"status $?\"",
    "ulimit -aS; ulimit -aH",
    "env -u _ | sort",
    "grep -E '^(Sig(Blk|Ign)|NoNewPrivs|Seccomp|Cap|Umask|Groups|[UG]id)' /proc/self/status",
    "cut -d' ' -f18,19 /proc/self/stat; nice; umask; pwd",
    "read -r line; echo \"input: $line, status $?\"",
    "head -n 1; cat | wc -l",
    "env -i PATH=\"$PATH\" sh -c 'echo \"$# ${HOME-none}\"' x y",
    "no-such-command-@i; echo \"status $?\"",
];

const PIPES: &[&str] = &[
    "seq @n | while read -r l; do echo \"l$l\"; done | sort -r; echo \"${PIPESTATUS[@]}\"",
    "yes | head -n @n; echo \"${PIPESTATUS[@]}\"",
    "(exit 3) | true | (exit @c); echo \"${PIPESTATUS[*]}\"",
    "( set -o pipefail; (exit @c) | cat; echo \"status $?\" )",
    "{ echo a; echo b >&2; } 2>&1 | sed 's/^/@i:/'",
    "seq @n000 | tee copy-@i | wc -l; wc -c < copy-@i",
    "seq @n | xargs -P 3 -n 1 sh -c 'echo $(($0 * 2))' | sort -n",
    "mkfifo pipe-@i; { sleep @d; seq @n; } > pipe-@i & cat pipe-@i; wait $!; rm pipe-@i",
    "shopt -s lastpipe; echo @n | read -r v; echo \"v=$v\"; shopt -u lastpipe",
    "tar -cf - script 2>/dev/null | tar -tf -",
];

const HERE_DOCUMENTS: &[&str] = &[
    "cat <<END\nhello $((@n * 2)) $(echo sub)\nEND",
    "cat <<'END' | tr a-z A-Z\nno $expansion @n\nEND",
    "cat <<-END\n\t\tindented @n\n\tEND",
    "wc -c <<< \"$(seq @n000)\"",
    "while read -r a b; do echo \"$b-$a\"; done <<END\none @n\ntwo @i\nEND",
    "sh <<'END'\necho \"in sh\"; exit @c\nEND\necho \"status $?\"",
    "cat <<A; cat <<B\nfirst @n\nA\nsecond @i\nB",
];

const TRAPS: &[&str] = &[
    "( trap 'echo \"bye $?\"' EXIT; exit @c ); echo \"status $?\"",
    "( trap 'echo \"got @s\"; exit @c' @s; kill -@s $BASHPID; echo next ); echo \"status $?\"",
    "( trap '' @s; sh -c 'kill -@s $$; echo alive' ); echo \"status $?\"",
    "{ sh -c 'kill -@t $$'; echo \"status $?\"; } 2> /dev/null",
    "{ sh -c 'kill -SEGV $$'; echo \"status $?\"; } 2> /dev/null",
    "trap 'echo usr1 @i' USR1; kill -USR1 $BASHPID; trap - USR1",
    "( trap 'echo err @i' ERR; false; true )",
    "( trap 'echo \"debug $BASH_COMMAND\"' DEBUG; x=@n; : $x )",
    "f@i() { trap 'echo return' RETURN; echo in; }; f@i; trap - RETURN",
    "{ ( trap 'echo term; exit 4' TERM; trap -p TERM; ( trap -p TERM; kill -TERM $BASHPID ); echo \"status $?\" ); } 2> /dev/null",
    "( trap 'echo bye @i; kill -TERM $k; wait $k 2> /dev/null; echo ended' EXIT; sleep 1000 & k=$!; asleep $k; exit @c ) 2> /dev/null; echo \"status $?\"",
    "sh -c 'trap \"echo dash\" EXIT; exit @c'; echo \"status $?\"",
];

const BACKGROUND: &[&str] = &[
    "{ sleep @d; echo late; exit @c; } & wait $!; echo \"status $?\"",
    "for k in 1 2 3; do ( exit $k ) & all[k]=$!; done; for k in 3 1 2; do wait ${all[k]}; echo \"$?\"; done",
    "{ sleep 1000 & k=$!; asleep $k; kill -@t $k; wait $k; echo \"status $?\"; } 2> /dev/null",
    "{ sleep 1000 & k=$!; asleep $k; kill -STOP $k; sleep @d; kill -CONT $k; kill -TERM $k; wait $k; echo \"status $?\"; } 2> /dev/null",
    "( sleep @d; : > flag-@i ) & until [ -e flag-@i ]; do sleep 0.005; done; wait $!; rm flag-@i; echo seen",
    "( ( sleep @d; echo orphan > orphan-@i; echo done ) & ) | cat; cat orphan-@i",
    "( (sleep @d; exit @c) & wait -n $!; echo \"status $?\" )",
    "setsid -w sh -c 'echo own session; exit @c'; echo \"status $?\"",
    "nohup sh -c 'echo nohup; exit @c' < /dev/null 2> /dev/null; echo \"status $?\"",
    "timeout 0.05 sleep 1000; echo \"status $?\"",
    "flock lock-@i sh -c 'echo locked; sleep @d' & flock lock-@i true; wait $!; echo unlocked",
    "nice -n 3 nice; nice -n 3 sh -c 'sleep @d & wait; nice'",
];

const COPROCESSES: &[&str] = &[
    "coproc C@i { while read -r x; do echo \"<$x>\"; done; exit @c; }\np=$C@i_PID\necho @n >&\"${C@i[1]}\"; read -r y <&\"${C@i[0]}\"; echo \"$y\"\nexec {C@i[1]}>&-; wait $p; echo \"status $?\"",
    "coproc D@i { tr a-z A-Z; }\np=$D@i_PID; exec {r@i}<&\"${D@i[0]}\"\necho word >&\"${D@i[1]}\"; exec {D@i[1]}>&-; cat <&$r@i; exec {r@i}<&-; wait $p",
    "{ coproc E@i { exec sleep 1000; }\np=$E@i_PID; asleep $p; kill -@t $p; wait $p; echo \"status $?\"; } 2> /dev/null",
];

const SUBSTITUTIONS: &[&str] = &[
    "diff <(seq @n) <(seq 2 @n); echo \"status $?\"",
    "cat <(sleep @d; echo a) <(echo b)",
    "echo through > >(tr a-z A-Z); wait $!",
    "{ seq @n000; } > >(gzip -n > gz-@i); wait $!; gunzip -c gz-@i | tail -n 1",
    "paste <(seq 3) <(seq 3 | tac)",
    // These filters finish at any time, so only the files that they write are compared.
    "seq @n00 | tee >(wc -l > lines-@i) > /dev/null",
    "seq @n00 > >(gzip -n > late-@i.gz)",
    "seq @n > >(while read -r l; do sleep 0.002; echo \"$l\"; done > slow-@i)",
    "exec 4< <(sleep @d; echo p4); cat <&4; exec 4<&-",
];

const JOB_CONTROL: &[&str] = &[
    "( set -m; sleep 0 & wait $!; echo \"status $?\" )",
    "( set -m; { sleep 1000 & k=$!; asleep $k; [ \"$(ps -o pgid= -p $k | tr -d ' ')\" = $k ] && echo 'own group'; kill -TERM -- -$k; wait $k; echo \"status $?\"; } 2> /dev/null )",
    "( set -m; { seq @n | tail -n 1 & wait $!; } 2> /dev/null )",
    "( set -m; { sleep 1000 & k=$!; asleep $k; kill -@t %1; wait $k; echo \"status $?\"; } 2> /dev/null )",
    "( set -m; { ( kill -STOP $BASHPID; echo resumed ) & k=$!; until [ \"$(ps -o s= -p $k)\" = T ]; do sleep 0.002; done; kill -CONT $k; wait -f $k; echo \"status $?\"; } 2> /dev/null )",
    "bash -m -c 'sleep 0.01 & wait; echo in -m; exit @c' 2> /dev/null; echo \"status $?\"",
];

const REDIRECTIONS: &[&str] = &[
    "echo one > file-@i; echo two >> file-@i; cat < file-@i",
    "exec 7<> rw-@i; echo abc >&7; exec 7>&-; cat rw-@i",
    "( set -C; echo a > clobber-@i; echo b > clobber-@i ); echo \"status $?\"; cat clobber-@i",
    "{ echo o; echo e >&2; } > both-@i 2>&1; cat both-@i",
    "{ echo o; echo e >&2; } 2>&1 > only-@i | cat; cat only-@i",
    "exec {fd@i}> named-@i; echo x >&$fd@i; exec {fd@i}>&-; cat named-@i",
    "ls /proc/self/fd | tr '\\n' ' '; echo",
    "( exec >&-; echo lost; echo \"status $?\" >&2 )",
    "( umask 027; : > mode-@i; mkdir dir-@i; umask )",
    "ls / > /dev/full; echo \"status $?\"",
    "exec 9>&1; { echo nine >&9; } > /dev/null; exec 9>&-",
];

/// Signals from one process of the script to another, at any moment.
const SIGNALS: &[&str] = &[
    "hit=; trap 'hit=1' USR1; b=$BASHPID; ( sleep @d; kill -USR1 $b ) & until [ $hit ]; do sleep 0.005; done; wait $!; trap - USR1; echo hit",
    "trap : USR2; b=$BASHPID; { sleep 1000 & s=$!; ( while :; do sleep 0.01; kill -USR2 $b; done ) & l=$!; wait $s; echo \"status $?\"; trap '' USR2; kill $l $s; wait $l $s; } 2> /dev/null; trap - USR2",
    "{ sh -c 'echo up; exec sleep 1000' > up-@i & k=$!; asleep $k; sleep @d; kill -@t $k; wait $k; echo \"status $?\"; } 2> /dev/null",
    "{ ( trap 'echo \"got @t\"; exit @c' @t; echo up > armed-@i; while :; do sleep 0.005; done ) & k=$!; until [ -s armed-@i ]; do :; done; sleep @d; kill -@t $k; wait $k; echo \"status $?\"; } 2> /dev/null",
    "{ ( trap '' TERM; echo up > deaf-@i; sleep 0.05; echo 'not ended' ) & k=$!; until [ -s deaf-@i ]; do :; done; kill -TERM $k; wait $k; echo \"status $?\"; } 2> /dev/null",
    "( trap 'echo all' TERM; setsid -w bash -c 'trap \"echo group; exit 3\" TERM; kill -TERM 0'; echo \"status $?\" )",
];

/// The script's reactions to the signal that comes from outside.
const RECEIVED: &[(&str, &str)] = &[
    ("TERM", "trap 'echo \"got TERM\"; exit @c' TERM; echo armed; { while :; do sleep 0.005; done; } 2> /dev/null"),
    ("HUP", "trap 'echo \"got HUP\"; exit @c' HUP; echo armed; { while :; do sleep 0.005; done; } 2> /dev/null"),
    ("INT", "trap 'echo \"got INT\"; exit @c' INT; echo armed; { while :; do sleep 0.005; done; } 2> /dev/null"),
    ("QUIT", "trap 'echo \"got QUIT\"; exit @c' QUIT; echo armed; { while :; do sleep 0.005; done; } 2> /dev/null"),
    ("USR1", "trap 'echo \"got USR1\"; exit @c' USR1; echo armed; { while :; do sleep 0.005; done; } 2> /dev/null"),
    (
        "USR2",
        "hit=; trap 'hit=1' USR2; echo armed; { until [ $hit ]; do sleep 0.005; done; } 2> /dev/null; echo more; exit @c",
    ),
    ("TERM", "trap 'echo \"the end\"' EXIT; echo armed; { while :; do sleep 0.005; done; } 2> /dev/null"),
    ("TERM", "echo armed; { while :; do sleep 0.005; done; } 2> /dev/null"),
    ("HUP", "echo armed; { while :; do sleep 0.005; done; } 2> /dev/null"),
    ("USR1", "echo armed; { while :; do sleep 0.005; done; } 2> /dev/null"),
    ("TERM", "echo armed; exec sleep 1000"),
    (
        "TERM",
        "trap 'kill -TERM $k 2> /dev/null; wait $k; echo ended; exit @c' TERM; sleep 1000 & k=$!; asleep $k; echo armed; wait $k",
    ),
];

/// The number of endings, counted from the first, that send a signal to the script's process group.
const GROUP_ENDINGS: usize = 2;

const ENDINGS: &[&str] = &[
    "kill -TERM 0",
    "trap 'echo \"zero\"; exit @c' TERM; kill -TERM 0; sleep 0.01",
    "exit @c",
    "true",
    "false",
    "kill -@t $$",
    "kill -SEGV $$",
    "exec sh -c 'echo last; exit @c'",
    "trap 'echo \"last $?\"' EXIT; exit @c",
    "seq @n | (exit @c)",
    "set -e; (exit @c); echo 'not reached unless 0'",
];
