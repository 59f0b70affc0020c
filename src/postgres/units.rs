//! Whether two texts mean the same setting value: `128MB` and `8192` (in 8 kB pages), `on` and `true`.
//!
//! Needed to tell a real change from another spelling before PostgreSQL is asked to restart.

/// How a setting's text is read: the columns of `pg_settings`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind<'a> {
    /// `bool`, `enum`, `integer`, `real` or `string`.
    pub vartype: &'a str,
    /// `kB`, `8kB`, `MB`, `B`, `ms`, `s`, `min` or nothing.
    pub unit: &'a str,
}

/// Whether both texts mean the same value for this kind of setting.
pub(super) fn same_value(kind: Kind<'_>, one: &str, other: &str) -> bool {
    if one == other {
        return true;
    }
    let same = match kind.vartype {
        "bool" => parse_bool(one).zip(parse_bool(other)).map(|(a, b)| a == b),
        // PostgreSQL rounds to whole units, so a difference below half a unit is none.
        "integer" => {
            parse_number(one, kind.unit).zip(parse_number(other, kind.unit)).map(|(a, b)| a.round() == b.round())
        }
        "real" => parse_number(one, kind.unit)
            .zip(parse_number(other, kind.unit))
            .map(|(a, b)| (a - b).abs() <= a.abs() * 1e-9),
        "enum" => Some(one.eq_ignore_ascii_case(other)),
        _ => None,
    };
    same.unwrap_or(false)
}

/// Reads a whole number as PostgreSQL would for a setting without unit.
pub(super) fn parse_integer(text: &str) -> Option<i64> {
    let number = parse_number(text, "")?.round();
    // Settings are 32-bit; anything beyond is refused rather than cut.
    (number.abs() <= f64::from(i32::MAX)).then_some(number as i64)
}

/// Reads a boolean; unambiguous prefixes count.
///
/// Source: PostgreSQL `parse_bool_with_len`.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    let text = text.trim().to_ascii_lowercase();
    if text.is_empty() {
        return None;
    }
    match text.as_str() {
        "1" | "on" => Some(true),
        "0" | "of" | "off" => Some(false),
        t if "true".starts_with(t) || "yes".starts_with(t) => Some(true),
        t if "false".starts_with(t) || "no".starts_with(t) => Some(false),
        _ => None,
    }
}

/// Reads a number with an optional unit, in multiples of `base`.
fn parse_number(text: &str, base: &str) -> Option<f64> {
    let text = text.trim();
    let (digits, suffix) = split_number(text);
    let number = parse_digits(digits)?;
    let suffix = suffix.trim();
    if suffix.is_empty() {
        return Some(number);
    }
    Some(number * scale(suffix)? / base_scale(base)?).filter(|_| is_time(suffix) == is_time(base))
}

fn split_number(text: &str) -> (&str, &str) {
    let hexadecimal = text.trim_start_matches(['-', '+']).to_ascii_lowercase().starts_with("0x");
    let end = text
        .char_indices()
        .find(|&(i, c)| {
            let exponent =
                matches!(c, 'e' | 'E') && text[i + 1..].starts_with(|n: char| n.is_ascii_digit() || n == '-');
            let sign = matches!(c, '-' | '+') && (i == 0 || text[..i].ends_with(['e', 'E']));
            let hex = hexadecimal && (c.is_ascii_hexdigit() || matches!(c, 'x' | 'X'));
            !(c.is_ascii_digit() || c == '.' || exponent || sign || hex)
        })
        .map_or(text.len(), |(i, _)| i);
    text.split_at(end)
}

fn parse_digits(digits: &str) -> Option<f64> {
    let (sign, rest) = match digits.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, digits.strip_prefix('+').unwrap_or(digits)),
    };
    let lower = rest.to_ascii_lowercase();
    let magnitude = if let Some(hex) = lower.strip_prefix("0x") {
        i64::from_str_radix(hex, 16).ok()? as f64
    } else if lower.len() > 1 && lower.starts_with('0') && lower.bytes().all(|b| b.is_ascii_digit()) {
        // strtol with base 0: a leading zero is octal.
        i64::from_str_radix(&lower, 8).ok()? as f64
    } else {
        lower.parse::<f64>().ok()?
    };
    Some(sign * magnitude)
}

fn is_time(unit: &str) -> bool {
    matches!(unit, "us" | "ms" | "s" | "min" | "h" | "d")
}

/// Bytes or microseconds. Units are case-sensitive in PostgreSQL.
fn scale(unit: &str) -> Option<f64> {
    Some(match unit {
        "B" => 1.0,
        "kB" => 1024.0,
        "MB" => 1024.0 * 1024.0,
        "GB" => 1024.0 * 1024.0 * 1024.0,
        "TB" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "min" => 60e6,
        "h" => 3_600e6,
        "d" => 86_400e6,
        _ => return None,
    })
}

/// A base unit may have a factor: `8kB`, `16MB`.
fn base_scale(base: &str) -> Option<f64> {
    let end = base.find(|c: char| !c.is_ascii_digit()).unwrap_or(base.len());
    let (factor, unit) = base.split_at(end);
    let factor = if factor.is_empty() { 1.0 } else { factor.parse::<f64>().ok()? };
    Some(factor * scale(unit)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(vartype: &str, unit: &str, one: &str, other: &str) -> bool {
        same_value(Kind { vartype, unit }, one, other)
    }

    #[test]
    fn spellings_of_one_value_are_the_same() {
        assert!(same("integer", "8kB", "16384", "128MB"));
        assert!(same("integer", "MB", "128", "128MB"));
        assert!(same("integer", "MB", "1024", "1GB"));
        assert!(same("integer", "ms", "5000", "5s"));
        assert!(same("integer", "s", "300", "5min"));
        assert!(same("integer", "ms", "100", "100ms"));
        assert!(same("integer", "kB", "1536", "1.5MB"));
        assert!(same("integer", "", "100", "0x64"));
        assert!(same("integer", "", "8", "010"));
        assert!(same("bool", "", "on", "true") && same("bool", "", "off", "0") && same("bool", "", "on", "y"));
        assert!(same("real", "", "0.9", "0.90") && same("real", "", "4", "4.0"));
        assert!(same("enum", "", "replica", "REPLICA"));
    }

    #[test]
    fn different_values_are_different() {
        assert!(!same("integer", "8kB", "16384", "129MB"));
        assert!(!same("integer", "ms", "5000", "5"));
        assert!(!same("integer", "MB", "128", "128s"), "a time is no size");
        assert!(!same("string", "", "a", "A"));
        assert!(!same("bool", "", "on", "o"));
        assert!(!same("integer", "", "100", "many"));
    }

    #[test]
    fn whole_numbers_are_limited() {
        assert_eq!(parse_integer("100"), Some(100));
        assert_eq!(parse_integer(" -1 "), Some(-1));
        assert_eq!(parse_integer("99999999999"), None);
        assert_eq!(parse_integer("100MB"), None);
    }
}
