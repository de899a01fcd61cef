//! How much a JSON Schema may cost, known before it is compiled.
//!
//! Two references where one would do double the work, and n levels of that double it n times: a schema of a kilobyte
//! can ask for more steps than there are. And one that refers to itself can need any depth of stack. So the schema is
//! walked once as a graph, and for each of the levels that a document may have two numbers are worked out: how many
//! of its parts are applied to one value on that level at most, and how many of them nest.
//!
//! Parts that are alternatives of each other (one value has one name, one place) count as the costliest of them.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::documents::{MAX_DEPTH, error::excerpt};

/// Refuses a schema that could cost too much, or that is not followed here.
pub(super) fn bound(schema: &Value) -> Result<(), String> {
    let mut graph = Graph {
        root: schema,
        sources: Vec::new(),
        known: HashMap::new(),
        patterns: 0,
    };
    let _root = graph.number(schema);
    let mut parts = Vec::new();
    while let Some(&source) = graph.sources.get(parts.len()) {
        parts.push(graph.follow(source)?);
    }
    let order = in_place_order(&parts)?;
    let mut below = vec![Cost::default(); parts.len()];
    for level in 0..=MAX_DEPTH {
        let own = u64::from(level == 0);
        let mut here = vec![Cost::default(); parts.len()];
        for &part in &order {
            here[part] = parts[part].cost(own, &here, &below);
        }
        if here[0].applied > MAX_APPLIED {
            return Err(format!(
                "it could apply more than {MAX_APPLIED} of its parts to one value of a document: use fewer combinations, above all in parts that refer to themselves"
            ));
        }
        if here[0].nested > MAX_NESTED {
            return Err(format!(
                "more than {MAX_NESTED} of its parts could nest in one another: use fewer references in a row"
            ));
        }
        below = here;
    }
    Ok(())
}

/// A bound on the cost of applying a part to a value.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    /// How many parts are applied to any one value that lies so many levels below.
    applied: u64,
    /// How many parts lie in one another on the way there.
    nested: u64,
}

impl Cost {
    /// Both are applied.
    fn and(self, other: Self) -> Self {
        Self {
            applied: self.applied.saturating_add(other.applied),
            nested: self.nested.max(other.nested),
        }
    }

    /// One of the two is.
    fn or(self, other: Self) -> Self {
        Self {
            applied: self.applied.max(other.applied),
            nested: self.nested.max(other.nested),
        }
    }
}

/// A part of the schema that is a schema itself; others by their numbers.
#[derive(Debug, Default)]
struct Subschema {
    /// Applied to the same value.
    in_place: Vec<usize>,
    /// Applied to what is in the value: one of each list to one of its values, and all lists.
    inside: Vec<Vec<usize>>,
    /// Whether it goes through its parts twice: once for what they say, once for what they leave over.
    twice: bool,
}

impl Subschema {
    fn cost(&self, own: u64, here: &[Cost], below: &[Cost]) -> Cost {
        let in_place = self.in_place.iter().map(|&part| here[part]);
        let inside = self.inside.iter().map(|alternatives| {
            let alternatives = alternatives.iter().map(|&part| below[part]);
            alternatives.fold(Cost::default(), Cost::or)
        });
        let all = in_place.chain(inside).fold(Cost::default(), Cost::and);
        let times = if self.twice { 2 } else { 1 };
        Cost {
            applied: all.applied.saturating_mul(times).saturating_add(own),
            nested: all.nested + 1,
        }
    }
}

/// The parts that were met so far.
struct Graph<'a> {
    root: &'a Value,
    /// By number, the root first.
    sources: Vec<&'a Value>,
    known: HashMap<*const Value, usize>,
    patterns: usize,
}

impl<'a> Graph<'a> {
    fn number(&mut self, source: &'a Value) -> usize {
        let Self { sources, known, .. } = self;
        *known.entry(source).or_insert_with(|| {
            sources.push(source);
            sources.len() - 1
        })
    }

    /// What a part applies.
    fn follow(&mut self, source: &'a Value) -> Result<Subschema, String> {
        let mut part = Subschema::default();
        // `true` and `false` apply nothing; what is no schema at all, the compiler refuses.
        let Some(object) = source.as_object() else {
            return Ok(part);
        };
        if !std::ptr::eq(source, self.root) && object.contains_key("$id") {
            return Err("\"$id\" stands on the top level alone".to_owned());
        }
        for keyword in ["$dynamicRef", "$recursiveRef"] {
            if object.contains_key(keyword) {
                return Err(format!("{keyword:?} is not supported: use \"$ref\""));
            }
        }
        if let Some(reference) = object.get("$ref") {
            let target = self.target(reference)?;
            part.in_place.push(self.number(target));
        }
        self.count_patterns(object)?;
        part.in_place.extend(self.applied(object, IN_PLACE));
        for keyword in ["dependentSchemas", "dependencies"] {
            part.in_place.extend(self.members(object, keyword));
        }
        self.follow_inside(object, &mut part);
        part.twice =
            object.contains_key("unevaluatedProperties") || object.contains_key("unevaluatedItems");
        Ok(part)
    }

    fn follow_inside(&mut self, object: &'a Map<String, Value>, part: &mut Subschema) {
        let mut named = self.members(object, "properties");
        named.extend(self.applied(object, &["additionalProperties", "unevaluatedProperties"]));
        part.inside.push(named);
        let matched = self.members(object, "patternProperties");
        part.inside
            .extend(matched.into_iter().map(|part| vec![part]));
        part.inside.push(self.applied(object, &["propertyNames"]));
        let placed = [
            "prefixItems",
            "items",
            "additionalItems",
            "unevaluatedItems",
        ];
        part.inside.push(self.applied(object, &placed));
        part.inside.push(self.applied(object, &["contains"]));
        part.inside.push(self.applied(object, &["contentSchema"]));
    }

    /// The parts under these keywords, each a schema or a list of them.
    fn applied(&mut self, object: &'a Map<String, Value>, keywords: &[&str]) -> Vec<usize> {
        let mut parts = Vec::new();
        for value in keywords.iter().filter_map(|keyword| object.get(*keyword)) {
            match value {
                Value::Array(list) => parts.extend(list.iter().map(|part| self.number(part))),
                part => parts.push(self.number(part)),
            }
        }
        parts
    }

    /// The parts under a keyword that names each.
    fn members(&mut self, object: &'a Map<String, Value>, keyword: &str) -> Vec<usize> {
        let members = object.get(keyword).and_then(Value::as_object);
        let members = members.into_iter().flat_map(Map::values);
        members.map(|part| self.number(part)).collect()
    }

    fn target(&self, reference: &Value) -> Result<&'a Value, String> {
        let text = reference.as_str().unwrap_or_default();
        let shown = excerpt(text);
        let pointer = text.strip_prefix('#').ok_or_else(|| {
            format!("\"$ref\": {shown:?} leads out of the schema, and nothing is fetched: put what it means under \"$defs\"")
        })?;
        if pointer.contains('%') || !(pointer.is_empty() || pointer.starts_with('/')) {
            return Err(format!(
                "\"$ref\": {shown:?} is not supported: write \"#\" or \"#/$defs/…\", without anchors and '%'"
            ));
        }
        self.root
            .pointer(pointer)
            .ok_or_else(|| format!("\"$ref\": {shown:?} leads nowhere"))
    }

    fn count_patterns(&mut self, object: &Map<String, Value>) -> Result<(), String> {
        let members = object.get("patternProperties").and_then(Value::as_object);
        self.patterns += usize::from(object.contains_key("pattern")) + members.map_or(0, Map::len);
        if self.patterns > MAX_PATTERNS {
            return Err(format!("it has more than {MAX_PATTERNS} patterns"));
        }
        Ok(())
    }
}

/// The parts, each after those that it applies to the same value.
fn in_place_order(parts: &[Subschema]) -> Result<Vec<usize>, String> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }

    let mut order = Vec::with_capacity(parts.len());
    let mut marks = vec![Mark::New; parts.len()];
    for start in 0..parts.len() {
        // A part and how many of its own were gone into. No recursion: there may be thousands in a row.
        let mut way = vec![(start, 0)];
        while let Some((part, gone)) = way.pop() {
            if marks[part] == Mark::Done {
                continue;
            }
            marks[part] = Mark::Open;
            match parts[part].in_place.get(gone) {
                Some(&next) if marks[next] == Mark::Open => {
                    return Err(
                        "a part refers to itself without going into a value: it would never end"
                            .to_owned(),
                    );
                }
                Some(&next) => way.extend([(part, gone + 1), (next, 0)]),
                None => {
                    marks[part] = Mark::Done;
                    order.push(part);
                }
            }
        }
    }
    Ok(order)
}

/// Keywords whose parts are applied to the same value.
const IN_PLACE: &[&str] = &["allOf", "anyOf", "oneOf", "not", "if", "then", "else"];
/// How many parts may be applied to one value.
const MAX_APPLIED: u64 = 10_000;
/// How many parts may nest, for the stack.
const MAX_NESTED: u64 = 400;
/// How many patterns there may be, each of which takes memory.
const MAX_PATTERNS: usize = 100;
