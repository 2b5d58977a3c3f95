//! Conditions of rules: expressions in CEL (<https://cel.dev>), compiled once, checked when they are written and bounded
//! in what they can cost. What is wrong with one is said in words; one that fails when it is asked counts against the
//! caller.

mod open;
mod survey;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use cel::common::ast::{Expr, LiteralValue, operators};
use cel::extractors::This;
use cel::objects::{Key, Map, Value};
use cel::parser::PrattParser;
use cel::{Context, Env, ExecutionError, IdedExpr};
use chrono::{DateTime, Utc};
use regex::Regex;

use open::Open;
use survey::Survey;

use super::args::{self, Paths};
use super::typing;

/// Bytes of the longest condition.
pub const CONDITION_MOST: usize = 4000;
/// Nodes of the largest condition, what a loop does counted once for each entry that there can be.
const COST_MOST: u64 = 20_000;
/// How deep an expression may nest: the evaluator descends into it, on a stack that ends.
const DEPTH_MOST: u16 = 32;
/// Fields within fields of the arguments.
const PATH_MOST: usize = 16;
/// Nodes of an expression.
const NODES_MOST: usize = 1000;
/// Entries of a list or object that a loop can be about; an argument with more fails the condition.
pub(super) const LOOP_MOST: usize = 256;
/// Bytes of a compiled pattern of `matches`.
const PATTERN_MOST: usize = 256 * 1024;

/// What a condition looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Looks {
    /// The arguments of `tools/call`.
    pub args: bool,
    /// The tool.
    pub tool: bool,
    /// The time.
    pub time: bool,
    /// The client's address.
    pub address: bool,
    /// The client's revision.
    pub era: bool,
    /// The API key.
    pub key: bool,
}

impl Looks {
    /// What either looks at.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            args: self.args || other.args,
            tool: self.tool || other.tool,
            time: self.time || other.time,
            address: self.address || other.address,
            era: self.era || other.era,
            key: self.key || other.key,
        }
    }
}

/// A compiled condition.
pub struct Condition {
    expression: IdedExpr,
    looks: Looks,
    paths: Vec<Vec<String>>,
    wanted: Paths,
    patterns: Arc<BTreeMap<String, Regex>>,
    /// It calls `in_cidr`.
    in_cidr: bool,
    /// Which of `principal`, `tool` and `request` it mentions.
    variables: BTreeSet<&'static str>,
}

impl std::fmt::Debug for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Condition")
            .field("looks", &self.looks)
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

/// What a condition is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Who asks.
    pub principal: &'a crate::principal::Principal,
    /// The tool by the server's own name; none for what is about no tool.
    pub tool: Option<&'a str>,
    /// What the registry says of the tool.
    pub marks: crate::server::Marks,
    /// The server's name.
    pub server: &'a str,
    /// The namespace whose door it is.
    pub namespace: Option<&'a str>,
    /// The revision that the client speaks.
    pub era: &'a str,
    /// Where the client is.
    pub address: Option<std::net::IpAddr>,
    /// The public id of the API key; none for a token.
    pub key: Option<&'a str>,
    /// When, in whole seconds.
    pub now: DateTime<Utc>,
    /// `arguments` of `tools/call` as they came; none: there are none.
    pub args: Option<&'a [u8]>,
}

impl Condition {
    /// Reads a condition. The error says everything that is wrong with it.
    pub fn compile(text: &str) -> Result<Self, Vec<String>> {
        let one = |reason: String| Err(vec![reason]);
        if text.len() > CONDITION_MOST {
            return one(format!("must have at most {CONDITION_MOST} bytes"));
        }
        // The parser is a guest here: what it cannot take must not end the process.
        let parser =
            || PrattParser::new().max_recursion_depth(DEPTH_MOST).max_expression_node_count(NODES_MOST);
        let expression = match catch_unwind(AssertUnwindSafe(|| parser().parse(text))) {
            Ok(Ok(expression)) => expression,
            Ok(Err(errors)) => return one(format!("is no expression: {}", said(&errors.to_string()))),
            Err(_) => return one("is no expression that can be read".into()),
        };
        let mut survey = Survey::default();
        let cost = survey.visit(&expression, &mut Vec::new(), 0);
        let mut wrong = survey.wrong;
        if cost > COST_MOST {
            wrong.push(format!("costs too much: {cost} steps at the worst, {COST_MOST} may be"));
        }
        if survey.depth <= usize::from(DEPTH_MOST) {
            wrong.extend(typing::check(&expression, &|_| typing::Type::Any));
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let wanted = Paths::of(&survey.paths);
        Ok(Self {
            expression,
            looks: survey.looks,
            paths: survey.paths,
            wanted,
            patterns: Arc::new(survey.patterns),
            in_cidr: survey.in_cidr,
            variables: survey.variables,
        })
    }

    /// What it looks at.
    pub fn looks(&self) -> Looks {
        self.looks
    }

    /// The paths below `args` that it looks at, such as `["repository", "name"]`; an empty one is the whole of `args`.
    pub fn arg_paths(&self) -> &[Vec<String>] {
        &self.paths
    }

    /// What is wrong with it for a tool that takes these arguments (a JSON Schema, as in `inputSchema`): paths that the
    /// tool does not have, and values that cannot be compared.
    pub fn check_args(&self, schema: &serde_json::Value) -> Vec<String> {
        let mut wrong = Vec::new();
        for path in self.paths.iter().filter(|path| !path.is_empty()) {
            if typing::of_path(schema, path).is_none() {
                wrong.push(format!("args.{} is no argument", path.join(".")));
            }
        }
        if wrong.is_empty() {
            let of = |path: &[String]| typing::of_path(schema, path).unwrap_or(typing::Type::Any);
            wrong.extend(typing::check(&self.expression, &of));
        }
        wrong
    }

    /// Whether it holds. The error says why that cannot be said.
    pub fn holds(&self, asked: &Asked<'_>) -> Result<bool, String> {
        let mut context = Context::with_env(Arc::clone(environment()));
        self.bind(&mut context, asked)?;
        let asked = catch_unwind(AssertUnwindSafe(|| Value::resolve(&self.expression, &context)));
        match asked {
            Ok(Ok(Value::Bool(holds))) => Ok(holds),
            Ok(Ok(_)) => Err("it is neither true nor false".into()),
            Ok(Err(error)) => Err(explain(&error)),
            Err(_) => Err("it could not be worked out".into()),
        }
    }

    /// Whether it holds whatever the arguments are, and, where no tool is asked about, whatever the tool is. None: that
    /// depends on them. The error says why it cannot be said.
    pub fn holds_anyway(&self, asked: &Asked<'_>) -> Result<Option<bool>, String> {
        let mut context = Context::with_env(Arc::clone(environment()));
        self.bind(&mut context, &Asked { args: None, ..*asked })?;
        let open = Open { tool: asked.tool.is_none() };
        catch_unwind(AssertUnwindSafe(|| open.holds(&self.expression, &context)))
            .unwrap_or_else(|_| Err("it could not be worked out".into()))
    }

    fn bind(&self, context: &mut Context<'_, '_>, asked: &Asked<'_>) -> Result<(), String> {
        let text = |text: &str| Value::String(Arc::new(text.to_owned()));
        let texts = |list: &[String]| Value::List(Arc::new(list.iter().map(|entry| text(entry)).collect()));
        let maybe = |value: Option<Value>| value.unwrap_or(Value::Null);
        let mark = |mark: Option<bool>| maybe(mark.map(Value::Bool));
        for variable in &self.variables {
            let value = match *variable {
                "principal" => object([
                    ("id", text(&asked.principal.id.to_string())),
                    ("name", text(&asked.principal.name)),
                    ("kind", text(asked.principal.kind.as_str())),
                    ("roles", texts(&asked.principal.roles)),
                    ("groups", texts(&asked.principal.groups)),
                ]),
                "tool" => object([
                    ("name", text(asked.tool.unwrap_or_default())),
                    ("server", text(asked.server)),
                    ("namespace", text(asked.namespace.unwrap_or_default())),
                    ("read_only", mark(asked.marks.read_only)),
                    ("destructive", mark(asked.marks.destructive)),
                    ("idempotent", mark(asked.marks.idempotent)),
                    ("open_world", mark(asked.marks.open_world)),
                ]),
                _ => object([
                    ("era", text(asked.era)),
                    (
                        "address",
                        text(&asked.address.map(|a| a.to_canonical().to_string()).unwrap_or_default()),
                    ),
                    ("time", Value::Timestamp(whole_second(asked.now).fixed_offset())),
                    ("key", text(asked.key.unwrap_or_default())),
                ]),
            };
            context.add_variable_from_value(*variable, value);
        }
        if self.looks.args {
            let value = args::read(asked.args.unwrap_or(b"{}"), &self.wanted)?;
            context.add_variable_from_value("args", value);
        }
        if !self.patterns.is_empty() {
            let patterns = Arc::clone(&self.patterns);
            let matches = move |This(subject): This<Arc<String>>, pattern: Arc<String>| {
                let known = patterns.get(pattern.as_str()).map(|regex| regex.is_match(&subject));
                known.ok_or_else(|| ExecutionError::function_error("matches", "its pattern is not known"))
            };
            context.add_function("matches", matches).map_err(|error| error.to_string())?;
        }
        if self.in_cidr {
            let in_cidr = |This(address): This<Arc<String>>, net: Arc<String>| {
                let wrong = |what: &str| ExecutionError::function_error("in_cidr", what);
                let address: std::net::IpAddr = address.parse().map_err(|_| wrong("is no address"))?;
                let net: ipnet::IpNet = net.parse().map_err(|_| wrong("is no network"))?;
                Ok::<bool, ExecutionError>(net.contains(&address))
            };
            context.add_function("in_cidr", in_cidr).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// What the parts of `principal`, `tool` and `request` are.
pub(super) const FIELDS: [(&str, &str, typing::Type); 16] = [
    ("principal", "id", typing::Type::Text),
    ("principal", "name", typing::Type::Text),
    ("principal", "kind", typing::Type::Text),
    ("principal", "roles", typing::Type::List),
    ("principal", "groups", typing::Type::List),
    ("tool", "name", typing::Type::Text),
    ("tool", "server", typing::Type::Text),
    ("tool", "namespace", typing::Type::Text),
    ("tool", "read_only", typing::Type::Any),
    ("tool", "destructive", typing::Type::Any),
    ("tool", "idempotent", typing::Type::Any),
    ("tool", "open_world", typing::Type::Any),
    ("request", "era", typing::Type::Text),
    ("request", "address", typing::Type::Text),
    ("request", "time", typing::Type::Time),
    ("request", "key", typing::Type::Text),
];

/// The second in which a time lies: conditions see no finer, so that what was decided can be remembered that long.
pub(super) fn whole_second(now: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp(now.timestamp(), 0).unwrap_or(now)
}

/// The path below `args` that an expression spells, such as `args.a["b-c"]`.
pub(super) fn arg_path(expression: &Expr) -> Option<Vec<String>> {
    match expression {
        Expr::Ident(name) if name == "args" => Some(Vec::new()),
        Expr::Select(select) => {
            let mut path = arg_path(&select.operand.expr)?;
            path.push(select.field.clone());
            Some(path)
        }
        Expr::Call(call) if call.func_name == operators::INDEX => {
            let (of, at) = match (call.target.as_deref(), call.args.as_slice()) {
                (Some(of), [at]) | (None, [of, at]) => (of, at),
                _ => return None,
            };
            let Expr::Literal(LiteralValue::String(key)) = &at.expr else { return None };
            let mut path = arg_path(&of.expr)?;
            path.push(key.inner().to_owned());
            Some(path)
        }
        _ => None,
    }
}

fn environment() -> &'static Arc<Env> {
    // Nothing but the standard functions, which are the same for ever.
    static ENVIRONMENT: OnceLock<Arc<Env>> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| Arc::new(Env::stdlib()))
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let map = fields.into_iter().map(|(key, value)| (Key::String(Arc::new(key.to_owned())), value)).collect();
    Value::Map(Map { map: Arc::new(map) })
}

/// Why a condition fails, without the values: an argument has no place in a log or in an answer.
fn explain(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("there is no `{key}`"),
        ExecutionError::UndeclaredReference(name) => format!("`{name}` is not known here"),
        ExecutionError::NoSuchOverload(error) => format!("`{}` does not take such values", error.function()),
        ExecutionError::FunctionError { function, .. } => format!("`{function}` failed"),
        ExecutionError::ValuesNotComparable(..) => "values of these types are not comparable".into(),
        ExecutionError::UnsupportedBinaryOperator(operator, ..) => {
            format!("`{operator}` does not take such values")
        }
        ExecutionError::Overflow(operator, ..) => format!("`{operator}` is out of range"),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "division by zero".into(),
        ExecutionError::IndexOutOfBounds(_) => "there is no entry at this index".into(),
        _ => "values have other types than expected".into(),
    }
}

/// The first line of what the parser says.
fn said(error: &str) -> String {
    let line = error.lines().find(|line| !line.trim().is_empty()).unwrap_or("it cannot be read");
    line.trim().chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests;
