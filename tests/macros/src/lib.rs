//! The attribute `#[test]` of pinfold's tests. It registers a test for `tests/support/harness.rs`, together with what
//! the test needs on the machine:
//!
//! ```ignore
//! #[test]
//! #[requires(cgroup, root, program("tmux"))]
//! fn a_terminal_in_a_terminal() { … }
//! ```
//!
//! Each requirement is a call of a function that returns `Result<(), Lack>`: of one in `tests/support/needs.rs`, or of
//! one in the test's own file. A name without arguments is called without arguments. `#[each_containment]` makes two
//! tests of a function that takes the name of a containment; the one with cgroups requires one.

use proc_macro::{Delimiter, Group, TokenStream, TokenTree};

/// Registers a function as a test. The attributes `requires`, `each_containment` and `ignore` follow it.
#[proc_macro_attribute]
pub fn test(_: TokenStream, item: TokenStream) -> TokenStream {
    let Item { function, name, requirements, ignored, each_containment } = Item::parse(item);
    let ignored = ignored.map_or("None".to_owned(), |reason| format!("Some({reason})"));
    let tests: &[(String, String, &str)] = if each_containment {
        &["cgroup", "subreaper"].map(|containment| {
            let needs = if containment == "cgroup" { "cgroup()?;" } else { "" };
            (format!("{name}::{containment}"), format!("|| {name}(\"{containment}\")"), needs)
        })
    } else {
        &[(name.clone(), name, "")]
    };
    let mut registered = String::new();
    for (name, function, first) in tests {
        registered += &format!(
            "::inventory::submit! {{ crate::support::harness::Test {{
                path: concat!(module_path!(), \"::{name}\"), function: {function}, ignored: {ignored},
                needs: || {{ #[allow(unused_imports)] use crate::support::needs::*; {first} {requirements} Ok(()) }},
            }} }}"
        );
    }
    let mut tokens = function;
    tokens.extend(registered.parse::<TokenStream>().unwrap());
    tokens
}

struct Item {
    /// The function without the attributes that belong to `#[test]`.
    function: TokenStream,
    name: String,
    /// Calls, as statements.
    requirements: String,
    /// The reason, as a literal.
    ignored: Option<String>,
    each_containment: bool,
}

impl Item {
    fn parse(tokens: TokenStream) -> Self {
        let mut item = Self {
            function: TokenStream::new(),
            name: String::new(),
            requirements: String::new(),
            ignored: None,
            each_containment: false,
        };
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            if matches!(&token, TokenTree::Punct(punct) if punct.as_char() == '#')
                && let Some(TokenTree::Group(attribute)) = tokens.peek()
                && item.take(attribute)
            {
                tokens.next();
                continue;
            }
            let is_fn = matches!(&token, TokenTree::Ident(word) if word.to_string() == "fn");
            item.function.extend([token]);
            if is_fn {
                item.name = tokens.peek().expect("the name of the function").to_string();
                item.function.extend(tokens);
                break;
            }
        }
        item
    }

    /// Takes an attribute that belongs to `#[test]`; false for any other.
    fn take(&mut self, attribute: &Group) -> bool {
        let mut tokens: Vec<TokenTree> = attribute.stream().into_iter().collect();
        // A declarative macro has passed the attribute as one fragment.
        while let [TokenTree::Group(fragment)] = &tokens[..] {
            tokens = fragment.stream().into_iter().collect();
        }
        match (tokens[0].to_string().as_str(), tokens.get(1), tokens.get(2)) {
            ("requires", Some(TokenTree::Group(group)), _) => self.requirements += &calls(group.stream()),
            ("ignore", Some(_), Some(reason)) => self.ignored = Some(reason.to_string()),
            ("each_containment", None, _) => self.each_containment = true,
            _ => return false,
        }
        true
    }
}

/// Returns the requirements as statements: `root` becomes `root()?;`.
fn calls(requirements: TokenStream) -> String {
    let mut calls = String::new();
    let mut called = true;
    for token in
        requirements.into_iter().chain([TokenTree::Punct(proc_macro::Punct::new(',', proc_macro::Spacing::Alone))])
    {
        match &token {
            TokenTree::Punct(punct) if punct.as_char() == ',' => {
                calls += if called { "?;" } else { "()?;" };
                called = true;
            }
            TokenTree::Group(group) if group.delimiter() == Delimiter::Parenthesis => {
                calls += &token.to_string();
                called = true;
            }
            _ => {
                calls += &token.to_string();
                called = false;
            }
        }
    }
    calls
}
