//! A light check of types in conditions: what can be told before there are any values, so that a comparison that never
//! holds is an error when it is written.

use cel::IdedExpr;
use cel::common::ast::{Expr, LiteralValue, operators};
use serde_json::Value;

use super::condition::{FIELDS, arg_path};

/// What a value is known to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    /// Anything.
    Any,
    /// True or false.
    Bool,
    /// A number of any kind.
    Number,
    /// A text.
    Text,
    /// A list.
    List,
    /// An object.
    Object,
    /// A point in time.
    Time,
    /// A span of time.
    Span,
    /// Null.
    Null,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Self::Any => "anything",
            Self::Bool => "a bool",
            Self::Number => "a number",
            Self::Text => "a string",
            Self::List => "a list",
            Self::Object => "an object",
            Self::Time => "a timestamp",
            Self::Span => "a duration",
            Self::Null => "null",
        }
    }

    fn may_be(self, other: Self) -> bool {
        self == Self::Any || other == Self::Any || self == other
    }
}

/// What is wrong with the types of a condition. `of` says what the arguments are.
pub(super) fn check(root: &IdedExpr, of: &dyn Fn(&[String]) -> Type) -> Vec<String> {
    let mut checker = Checker { of, wrong: Vec::new() };
    let found = checker.of(root);
    if !found.may_be(Type::Bool) {
        checker.wrong.push(format!("is {} and not true or false", found.name()));
    }
    checker.wrong
}

struct Checker<'a> {
    of: &'a dyn Fn(&[String]) -> Type,
    wrong: Vec<String>,
}

impl Checker<'_> {
    fn of(&mut self, node: &IdedExpr) -> Type {
        if let Some(path) = arg_path(&node.expr) {
            return match &node.expr {
                Expr::Select(select) if select.test => Type::Bool,
                _ if path.is_empty() => Type::Object,
                _ => (self.of)(&path),
            };
        }
        match &node.expr {
            Expr::Literal(literal) => match literal {
                LiteralValue::Boolean(_) => Type::Bool,
                LiteralValue::Double(_) | LiteralValue::Int(_) | LiteralValue::UInt(_) => Type::Number,
                LiteralValue::String(_) => Type::Text,
                LiteralValue::Null => Type::Null,
                LiteralValue::Bytes(_) => Type::Any,
            },
            Expr::List(list) => {
                for entry in &list.elements {
                    self.of(entry);
                }
                Type::List
            }
            Expr::Map(_) => Type::Object,
            Expr::Select(select) if select.test => Type::Bool,
            Expr::Select(select) => match &select.operand.expr {
                Expr::Ident(name) => {
                    let field = FIELDS.iter().find(|(of, field, _)| of == name && *field == select.field);
                    field.map_or(Type::Any, |(.., found)| *found)
                }
                _ => {
                    self.of(&select.operand);
                    Type::Any
                }
            },
            Expr::Ident(name) if matches!(name.as_str(), "principal" | "tool" | "request") => Type::Object,
            Expr::Comprehension(loops) => {
                let range = self.of(&loops.iter_range);
                if !range.may_be(Type::List) && range != Type::Object {
                    self.wrong.push(format!("a loop goes over {}", range.name()));
                }
                self.of(&loops.loop_step);
                Type::Any
            }
            Expr::Call(call) => self.call(call),
            Expr::Ident(_) | Expr::Struct(_) | Expr::Unspecified => Type::Any,
        }
    }

    fn call(&mut self, call: &cel::common::ast::CallExpr) -> Type {
        let target = call.target.as_deref().map(|target| self.of(target));
        let args: Vec<Type> = call.args.iter().map(|arg| self.of(arg)).collect();
        let pair = (args.first().copied().unwrap_or(Type::Any), args.get(1).copied().unwrap_or(Type::Any));
        match call.func_name.as_str() {
            operators::LOGICAL_AND | operators::LOGICAL_OR => {
                self.want(pair.0, Type::Bool, "`&&` and `||` take bools");
                self.want(pair.1, Type::Bool, "`&&` and `||` take bools");
                Type::Bool
            }
            operators::LOGICAL_NOT => {
                self.want(pair.0, Type::Bool, "`!` takes a bool");
                Type::Bool
            }
            operators::EQUALS | operators::NOT_EQUALS => {
                let null = pair.0 == Type::Null || pair.1 == Type::Null;
                if !null && !pair.0.may_be(pair.1) {
                    self.wrong.push(format!("compares {} with {}", pair.0.name(), pair.1.name()));
                }
                Type::Bool
            }
            operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS => {
                for side in [pair.0, pair.1] {
                    if matches!(side, Type::List | Type::Object | Type::Null) {
                        self.wrong.push(format!("orders {}", side.name()));
                    }
                }
                if !pair.0.may_be(pair.1) {
                    self.wrong.push(format!("compares {} with {}", pair.0.name(), pair.1.name()));
                }
                Type::Bool
            }
            operators::IN => {
                if !pair.1.may_be(Type::List) && pair.1 != Type::Object {
                    self.wrong.push(format!("`in` looks in {}", pair.1.name()));
                }
                Type::Bool
            }
            operators::CONDITIONAL => {
                self.want(pair.0, Type::Bool, "`?` follows a bool");
                match args.get(2) {
                    Some(other) if *other == pair.1 => pair.1,
                    _ => Type::Any,
                }
            }
            operators::ADD => match (pair.0, pair.1) {
                (one, other) if one == other => one,
                _ => Type::Any,
            },
            operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO => {
                match (pair.0, pair.1) {
                    (Type::Number, Type::Number) => Type::Number,
                    _ => Type::Any,
                }
            }
            "contains" | "startsWith" | "endsWith" | "matches" | "in_cidr" => {
                let name = &call.func_name;
                if let Some(target) = target {
                    self.want(target, Type::Text, &format!("`{name}` is for strings"));
                }
                self.want(pair.0, Type::Text, &format!("`{name}` takes a string"));
                Type::Bool
            }
            "size" | "int" | "uint" | "double" => Type::Number,
            "string" => Type::Text,
            "timestamp" => Type::Time,
            "duration" => Type::Span,
            name if name.starts_with("get") => {
                if let Some(target) = target
                    && !target.may_be(Type::Time)
                    && target != Type::Span
                {
                    self.wrong.push(format!("`{name}` is for timestamps"));
                }
                Type::Number
            }
            _ => Type::Any,
        }
    }

    fn want(&mut self, found: Type, wanted: Type, reason: &str) {
        if !found.may_be(wanted) {
            self.wrong.push(format!("{reason}, and here is {}", found.name()));
        }
    }
}

/// What a JSON Schema says that an argument is, by its path. None: it has no such argument.
pub(super) fn of_path(schema: &Value, path: &[String]) -> Option<Type> {
    let mut at = schema;
    for (i, step) in path.iter().enumerate() {
        if at.as_bool() == Some(true) {
            return Some(Type::Any);
        }
        let properties = at.get("properties").and_then(Value::as_object);
        match properties.and_then(|properties| properties.get(step)) {
            Some(found) => at = found,
            None => {
                // What is put together from other schemas, or takes other names, cannot be told here.
                let open = ["$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "patternProperties"];
                let composed = open.iter().any(|key| at.get(key).is_some());
                let additional = at.get("additionalProperties");
                let takes = match additional {
                    Some(Value::Bool(takes)) => *takes,
                    Some(Value::Object(_)) => true,
                    _ => false,
                };
                let untyped = i > 0 && properties.is_none() && at.get("type").is_none_or(|t| t == "object");
                return (composed || takes || untyped).then_some(Type::Any);
            }
        }
    }
    Some(of_schema(at))
}

fn of_schema(schema: &Value) -> Type {
    match schema.get("type").and_then(Value::as_str) {
        Some("string") => Type::Text,
        Some("integer" | "number") => Type::Number,
        Some("boolean") => Type::Bool,
        Some("array") => Type::List,
        Some("object") => Type::Object,
        Some("null") => Type::Null,
        _ => Type::Any,
    }
}
