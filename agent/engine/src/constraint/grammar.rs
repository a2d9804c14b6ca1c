//! Grammars in Lark's notation and regular expressions, written as OpenAI writes them for custom tools ("Function
//! calling", "Context-free grammars").
//!
//! Invariant: what goes on to the grammar's compiler has a bounded size, number of rules, and repetitions, and no part in
//! another language, which would come past the bounds of that.

use ipc::GrammarSyntax;
use llguidance::api::TopLevelGrammar;

use super::ConstraintError;
use crate::limits::{
    GRAMMAR_BYTES_MAX, GRAMMAR_NEGATIONS_MAX, GRAMMAR_RULES_MAX, SCHEMA_REPEATS_MAX,
};

/// Directives with another language behind them.
const FOREIGN: &[&str] = &["%json", "%lark", "%llguidance", "%regex"];
/// A number behind one of these says how often something is repeated: `{2,5}`, `~ 2..5`.
const BEFORE_REPEATS: &[u8] = b"{,~.";

fn refuse<T>(place: String, found: String, expected: String) -> Result<T, ConstraintError> {
    Err(ConstraintError::Schema { place, found, expected })
}

/// Checks a definition and says it in the words of the grammar's compiler.
pub(super) fn parse(
    syntax: GrammarSyntax,
    definition: &str,
) -> Result<TopLevelGrammar, ConstraintError> {
    let whole = || "definition".to_owned();
    if definition.len() > GRAMMAR_BYTES_MAX {
        let found = format!("{} bytes", definition.len());
        return refuse(whole(), found, format!("at most {GRAMMAR_BYTES_MAX}"));
    }
    for (number, line) in (1..).zip(definition.lines()) {
        if let Some(count) = repeats(line).find(|count| *count > SCHEMA_REPEATS_MAX) {
            let expected = format!("at most {SCHEMA_REPEATS_MAX}");
            return refuse(format!("line {number}"), format!("{count} repetitions"), expected);
        }
    }
    if syntax == GrammarSyntax::Regex {
        return Ok(TopLevelGrammar::from_regex(definition));
    }
    // The compiler follows a rule into the rules that it names, and a negation into what it negates.
    let bounds = [(':', "rules", GRAMMAR_RULES_MAX), ('~', "negations", GRAMMAR_NEGATIONS_MAX)];
    for (mark, name, count_max) in bounds {
        let found = definition.matches(mark).count();
        if found > count_max {
            let found = format!("{found} {name} (`{mark}`)");
            return refuse(whole(), found, format!("at most {count_max}"));
        }
    }
    for (number, line) in (1..).zip(definition.lines()) {
        if let Some(word) = FOREIGN.iter().find(|word| line.contains(**word)) {
            let expected = "rules and terminals, %import and %ignore".to_owned();
            return refuse(format!("line {number}"), (*word).to_owned(), expected);
        }
    }
    Ok(TopLevelGrammar::from_lark(definition.to_owned()))
}

/// Numbers of a line that may say how often something is repeated.
fn repeats(line: &str) -> impl Iterator<Item = u64> {
    let mut before = b' ';
    line.as_bytes().chunk_by(|one, next| one.is_ascii_digit() && next.is_ascii_digit()).filter_map(
        move |chunk| {
            let counts = BEFORE_REPEATS.contains(&before);
            if let [.., last] = chunk
                && !last.is_ascii_whitespace()
            {
                before = *last;
            }
            let digits = std::str::from_utf8(chunk).ok().filter(|_| counts)?;
            let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
            // One that does not fit is larger than any bound.
            is_number.then(|| digits.parse().unwrap_or(u64::MAX))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_offer_is_refused_where_it_stands() {
        let many = |text: &str, count: usize| text.repeat(count);
        let long = many("x", GRAMMAR_BYTES_MAX + 1);
        let rules = format!("start: \"a\"\n{}", many("a: b\n", GRAMMAR_RULES_MAX));
        let negations = format!("start: A\nA: {}\"a\"", many("~", GRAMMAR_NEGATIONS_MAX + 1));
        for (syntax, definition, place, found) in [
            (GrammarSyntax::Lark, long.as_str(), "definition", "8193 bytes"),
            (GrammarSyntax::Regex, long.as_str(), "definition", "8193 bytes"),
            (GrammarSyntax::Lark, rules.as_str(), "definition", "129 rules (`:`)"),
            (GrammarSyntax::Lark, negations.as_str(), "definition", "33 negations (`~`)"),
            (GrammarSyntax::Lark, "start: x\nx: %json {}", "line 2", "%json"),
            (GrammarSyntax::Lark, "%llguidance {}\nstart: \"a\"", "line 1", "%llguidance"),
            (GrammarSyntax::Lark, "start: \"a\"{1001}", "line 1", "1001 repetitions"),
            (GrammarSyntax::Lark, "start: \"a\"~3 .. 2000", "line 1", "2000 repetitions"),
            (
                GrammarSyntax::Regex,
                "a{2, 99999999999999999999}",
                "line 1",
                "18446744073709551615 repetitions",
            ),
        ] {
            match parse(syntax, definition) {
                Err(ConstraintError::Schema { place: at, found: what, .. }) => {
                    assert_eq!((at.as_str(), what.as_str()), (place, found));
                }
                other => panic!("{definition:.40}: {other:?}"),
            }
        }
        for definition in ["start: \"20261129\" \"é\"~2", "start: /[0-9]{3,1000} 5000/"] {
            parse(GrammarSyntax::Lark, definition).unwrap();
        }
    }
}
