//! What a condition says where not all is known that it looks at.

use cel::common::ast::{EntryExpr, Expr, operators};
use cel::objects::Value;
use cel::{Context, IdedExpr};

use super::explain;

/// Three-valued logic: what is said where the arguments, and perhaps the tool, are not known.
pub(super) struct Open {
    /// The tool is not known either.
    pub(super) tool: bool,
}

impl Open {
    pub(super) fn holds(&self, node: &IdedExpr, context: &Context<'_, '_>) -> Result<Option<bool>, String> {
        if !self.depends(node) {
            return match Value::resolve(node, context) {
                Ok(Value::Bool(holds)) => Ok(Some(holds)),
                Ok(_) => Err("it is neither true nor false".into()),
                Err(error) => Err(explain(&error)),
            };
        }
        let Expr::Call(call) = &node.expr else { return Ok(None) };
        match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::LOGICAL_NOT, [inner]) => Ok(self.holds(inner, context)?.map(|holds| !holds)),
            (operators::LOGICAL_AND, [one, other]) => self.either(one, other, false, context),
            (operators::LOGICAL_OR, [one, other]) => self.either(one, other, true, context),
            _ => Ok(None),
        }
    }

    /// What two sides come to, of which one that is `decides` decides: then even a failure of the other is of no matter.
    fn either(
        &self,
        one: &IdedExpr,
        other: &IdedExpr,
        decides: bool,
        context: &Context<'_, '_>,
    ) -> Result<Option<bool>, String> {
        match (self.holds(one, context), self.holds(other, context)) {
            (Ok(Some(side)), _) | (_, Ok(Some(side))) if side == decides => Ok(Some(decides)),
            (Ok(Some(_)), Ok(Some(_))) => Ok(Some(!decides)),
            (Ok(Some(_)), Err(reason)) | (Err(reason), Ok(Some(_)) | Err(_)) => Err(reason),
            _ => Ok(None),
        }
    }

    /// Whether an expression mentions what is not known.
    fn depends(&self, node: &IdedExpr) -> bool {
        match &node.expr {
            Expr::Ident(name) => name == "args" || (self.tool && name == "tool"),
            Expr::Select(select) => {
                let placed = matches!(&select.operand.expr, Expr::Ident(name) if name == "tool")
                    && matches!(select.field.as_str(), "server" | "namespace");
                !placed && self.depends(&select.operand)
            }
            Expr::Call(call) => {
                call.target.iter().any(|target| self.depends(target))
                    || call.args.iter().any(|arg| self.depends(arg))
            }
            Expr::List(list) => list.elements.iter().any(|entry| self.depends(entry)),
            Expr::Map(map) => map.entries.iter().any(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => self.depends(&entry.key) || self.depends(&entry.value),
                EntryExpr::StructField(field) => self.depends(&field.value),
            }),
            Expr::Comprehension(loops) => [&loops.iter_range, &loops.loop_cond, &loops.loop_step]
                .into_iter()
                .any(|part| self.depends(part)),
            Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => false,
        }
    }
}
