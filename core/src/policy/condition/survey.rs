//! One walk over a condition: what it looks at, what it costs at the worst, and what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};

use cel::IdedExpr;
use cel::common::ast::{EntryExpr, Expr, LiteralValue};
use regex::Regex;

use super::{DEPTH_MOST, FIELDS, LOOP_MOST, Looks, PATH_MOST, PATTERN_MOST, arg_path};

/// The functions that conditions may call, and with how many arguments beside what they are called on.
const FUNCTIONS: [(&str, bool, usize); 26] = [
    ("contains", true, 1),
    ("startsWith", true, 1),
    ("endsWith", true, 1),
    ("matches", true, 1),
    ("in_cidr", true, 1),
    ("size", true, 0),
    ("size", false, 1),
    ("int", false, 1),
    ("uint", false, 1),
    ("double", false, 1),
    ("string", false, 1),
    ("timestamp", false, 1),
    ("duration", false, 1),
    ("getFullYear", true, 0),
    ("getMonth", true, 0),
    ("getDate", true, 0),
    ("getDayOfMonth", true, 0),
    ("getDayOfYear", true, 0),
    ("getDayOfWeek", true, 0),
    ("getHours", true, 0),
    ("getMinutes", true, 0),
    ("getSeconds", true, 0),
    ("getHours", true, 1),
    ("getDayOfWeek", true, 1),
    ("getMinutes", true, 1),
    ("getDate", true, 1),
];

/// What is found on a walk over the expression.
#[derive(Default)]
pub(super) struct Survey {
    pub(super) looks: Looks,
    pub(super) paths: Vec<Vec<String>>,
    pub(super) patterns: BTreeMap<String, Regex>,
    pub(super) wrong: Vec<String>,
    pub(super) in_cidr: bool,
    /// Which of `principal`, `tool` and `request` it mentions.
    pub(super) variables: BTreeSet<&'static str>,
    pub(super) depth: usize,
}

impl Survey {
    /// Gives the steps that evaluating takes at the worst. `own` are names that loops gave.
    pub(super) fn visit<'e>(&mut self, node: &'e IdedExpr, own: &mut Vec<&'e str>, depth: usize) -> u64 {
        self.depth = self.depth.max(depth);
        if depth > usize::from(DEPTH_MOST) {
            // Said once, at the end of the way down.
            if !self.wrong.iter().any(|wrong| wrong.starts_with("nests")) {
                self.wrong.push(format!("nests more than {DEPTH_MOST} deep"));
            }
            return 1;
        }
        let depth = depth + 1;
        if let Some(path) = arg_path(&node.expr) {
            self.looks.args = true;
            if path.len() > PATH_MOST {
                self.wrong.push(format!("looks more than {PATH_MOST} fields deep into `args`"));
                return 1;
            }
            if !self.paths.contains(&path) {
                self.paths.push(path);
            }
            return 2;
        }
        match &node.expr {
            Expr::Ident(name) => {
                self.name(name, own);
                1
            }
            Expr::Select(select) => {
                if let Expr::Ident(name) = &select.operand.expr
                    && !own.contains(&name.as_str())
                {
                    self.field(name, &select.field);
                    return 2;
                }
                1 + self.visit(&select.operand, own, depth)
            }
            Expr::Call(call) => {
                self.function(call);
                let target = call.target.as_deref().map_or(0, |target| self.visit(target, own, depth));
                1 + target + call.args.iter().map(|arg| self.visit(arg, own, depth)).sum::<u64>()
            }
            Expr::Comprehension(loops) => {
                let range = self.visit(&loops.iter_range, own, depth);
                let start = self.visit(&loops.accu_init, own, depth);
                let names = own.len();
                own.push(&loops.iter_var);
                own.extend(loops.iter_var2.as_deref());
                own.push(&loops.accu_var);
                let each =
                    self.visit(&loops.loop_cond, own, depth) + self.visit(&loops.loop_step, own, depth);
                let end = self.visit(&loops.result, own, depth);
                own.truncate(names);
                range + start + end + each.saturating_mul(LOOP_MOST as u64)
            }
            Expr::List(list) => {
                1 + list.elements.iter().map(|entry| self.visit(entry, own, depth)).sum::<u64>()
            }
            Expr::Map(map) => {
                let entries = map.entries.iter();
                1 + entries.map(|entry| self.entry(&entry.expr, own, depth)).sum::<u64>()
            }
            Expr::Struct(_) => {
                self.wrong.push("makes a message, which conditions cannot".into());
                1
            }
            Expr::Literal(_) | Expr::Unspecified => 1,
        }
    }

    fn entry<'e>(&mut self, entry: &'e EntryExpr, own: &mut Vec<&'e str>, depth: usize) -> u64 {
        match entry {
            EntryExpr::MapEntry(entry) => {
                self.visit(&entry.key, own, depth) + self.visit(&entry.value, own, depth)
            }
            EntryExpr::StructField(field) => self.visit(&field.value, own, depth),
        }
    }

    fn name(&mut self, name: &str, own: &[&str]) {
        if own.contains(&name) {
            return;
        }
        self.mention(name);
        match name {
            "principal" => {}
            "tool" => self.looks.tool = true,
            "request" => {
                let all = Looks { time: true, address: true, era: true, key: true, ..Looks::default() };
                self.looks = self.looks.or(all);
            }
            other => self.wrong.push(format!(
                "`{other}` is not known here; there are `args`, `tool`, `principal` and `request`"
            )),
        }
    }

    fn field(&mut self, of: &str, field: &str) {
        if !matches!(of, "principal" | "tool" | "request") {
            return self.name(of, &[]);
        }
        if !FIELDS.iter().any(|(variable, name, _)| *variable == of && *name == field) {
            let known: Vec<&str> =
                FIELDS.iter().filter(|(variable, ..)| *variable == of).map(|(_, name, _)| *name).collect();
            return self.wrong.push(format!("`{of}` has no `{field}`; it has {}", known.join(", ")));
        }
        self.mention(of);
        match (of, field) {
            // Where a call goes is known whatever it is about.
            ("tool", "server" | "namespace") => {}
            ("tool", _) => self.looks.tool = true,
            ("request", "time") => self.looks.time = true,
            ("request", "address") => self.looks.address = true,
            ("request", "era") => self.looks.era = true,
            ("request", "key") => self.looks.key = true,
            _ => {}
        }
    }

    /// Only what is mentioned is made when the condition is asked.
    fn mention(&mut self, variable: &str) {
        self.variables.extend(FIELDS.iter().map(|(known, ..)| *known).find(|known| *known == variable));
    }

    fn function(&mut self, call: &cel::common::ast::CallExpr) {
        let name = call.func_name.as_str();
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return;
        }
        let known = FUNCTIONS.iter().filter(|(known, ..)| *known == name);
        let (mut found, mut fits) = (false, false);
        for (_, on, count) in known {
            found = true;
            fits |= call.target.is_some() == *on && call.args.len() == *count;
        }
        if !found {
            return self.wrong.push(format!("there is no function `{name}`"));
        }
        if !fits {
            return self.wrong.push(format!("`{name}` is not called like this"));
        }
        let literal = call.args.first().and_then(|arg| match &arg.expr {
            Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
            _ => None,
        });
        match (name, literal) {
            ("matches", Some(pattern)) => {
                match regex::RegexBuilder::new(pattern).size_limit(PATTERN_MOST).build() {
                    Ok(regex) => {
                        self.patterns.insert(pattern.to_owned(), regex);
                    }
                    Err(_) => self.wrong.push("`matches` has a pattern that cannot be used (RE2)".into()),
                }
            }
            ("matches", None) => self.wrong.push("`matches` takes a text that is written down".into()),
            ("in_cidr", Some(net)) if net.parse::<ipnet::IpNet>().is_err() => {
                self.wrong.push("`in_cidr` takes a network, such as \"10.0.0.0/8\"".into());
            }
            ("in_cidr", Some(_)) => self.in_cidr = true,
            ("in_cidr", None) => self.wrong.push("`in_cidr` takes a network that is written down".into()),
            _ => {}
        }
    }
}
