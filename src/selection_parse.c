/*-------------------------------------------------------------------------
 *
 * selection_parse.c
 *		Reads what follows "?" in a channel's name: PostgREST's syntax.
 *
 * It is a query string: parameters between "&", each percent-decoded on its
 * own, "+" being a space.  What PostgREST would ignore or guess is refused
 * here: an unknown parameter, garbage behind a list, a "%" that begins no
 * escape, "order" twice.
 *
 * Conditions are brought into one order, so that those who want the same are
 * recognized by equal text.
 *
 * Process: feed worker, query workers, any backend (tests).  Memory:
 * CurrentMemoryContext.  No locks.  Nothing is thrown for malformed input.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "selection.h"

typedef struct Parser
{
	const char *at;	  /* in the text at hand, which ends with NUL */
	const char *what; /* the parameter, for messages */
	int depth;
	int nconditions;
	SelectionError *error; /* message is set once something is wrong */
} Parser;

#define SYNTAX		"42601"
#define UNSUPPORTED "0A000"
#define LIMITS		"54000"

typedef struct OperatorName
{
	const char *name;
	const char *sql;
	bool quantified; /* takes (any) and (all) */
} OperatorName;

static const OperatorName operators[] = {
	{"eq", "=", true},	  {"neq", "<>", false},	  {"gt", ">", true},	{"gte", ">=", true},
	{"lt", "<", true},	  {"lte", "<=", true},	  {"like", "~~", true}, {"ilike", "~~*", true},
	{"match", "~", true}, {"imatch", "~*", true}, {"cs", "@>", false},	{"cd", "<@", false},
	{"ov", "&&", false},  {"sl", "<<", false},	  {"sr", ">>", false},	{"nxr", "&<", false},
	{"nxl", "&>", false}, {"adj", "-|-", false},
};

#define OPERATORS_HINT \
	"Operators are eq, neq, gt, gte, lt, lte, like, ilike, match, imatch, in, is, isdistinct, cs, cd, ov, sl, sr, nxr, nxl and adj, with or without \"not.\"."

static bool ParseTree(Parser *p, List **nodes);

static bool Fail(Parser *p, const char *sqlstate, const char *hint, const char *format, ...)
	pg_attribute_printf(4, 5);

/* The first error counts.  Returns false. */
static bool
Fail(Parser *p, const char *sqlstate, const char *hint, const char *format, ...)
{
	StringInfoData message;

	if (p->error->message != NULL)
		return false;
	initStringInfo(&message);
	for (;;)
	{
		va_list args;
		int needed;

		va_start(args, format);
		needed = appendStringInfoVA(&message, format, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&message, needed);
	}
	p->error->sqlstate = sqlstate;
	p->error->message = message.data;
	p->error->hint = hint != NULL ? pstrdup(hint) : NULL;
	return false;
}

static char *
Decode(Parser *p, const char *from, Size length)
{
	const char *hint = NULL;
	const char *sqlstate;
	char *problem;
	char *text = SelectionDecode(from, length, &sqlstate, &problem, &hint);

	if (text == NULL)
		Fail(p, sqlstate, hint, "%s", problem);
	return text;
}

/* ---- Names and paths ---- */

static void
SkipSpace(Parser *p)
{
	while (*p->at == ' ' || *p->at == '\t')
		p->at++;
}

static bool
Accept(Parser *p, const char *text)
{
	Size length = strlen(text);

	if (strncmp(p->at, text, length) != 0)
		return false;
	p->at += length;
	return true;
}

/* At a quotation mark; NULL and nothing consumed when it is not closed. */
static char *
ParseQuoted(Parser *p)
{
	const char *c = p->at + 1;
	StringInfoData out;

	initStringInfo(&out);
	for (; *c != '"'; c++)
	{
		if (*c == '\\')
			c++;
		if (*c == '\0')
			return NULL;
		appendStringInfoChar(&out, *c);
	}
	p->at = c + 1;
	return out.data;
}

static bool
IsNameChar(const char *c)
{
	/* A dash may be part of a name, an arrow not. */
	if (*c == '-')
		return c[1] != '>';
	return (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') ||
		   *c == '_' || *c == '$' || *c == ' ' || IS_HIGHBIT_SET(*c);
}

static char *
ParseName(Parser *p)
{
	char *name;

	SkipSpace(p);
	if (*p->at == '"')
	{
		name = ParseQuoted(p);
		if (name == NULL)
		{
			Fail(p, SYNTAX, NULL, "a quoted name in \"%s\" is not closed", p->what);
			return NULL;
		}
	}
	else
	{
		const char *start = p->at;
		const char *end;

		while (IsNameChar(p->at))
			p->at++;
		for (end = p->at; end > start && end[-1] == ' '; end--)
			;
		name = pnstrdup(start, end - start);
	}
	SkipSpace(p);
	if (name[0] == '\0')
	{
		Fail(
			p, SYNTAX,
			"Names with other characters than letters, digits, _, $ and - are written in double quotes.",
			"a column is expected in \"%s\" at \"%s\"", p->what, p->at);
		return NULL;
	}
	return name;
}

static bool
ParsePath(Parser *p, List **path)
{
	while (p->at[0] == '-' && p->at[1] == '>')
	{
		SelectionStep *step = palloc0(sizeof(SelectionStep));
		const char *c;

		p->at += 2;
		step->text = Accept(p, ">");

		/* A number is an index, unless something else follows it. */
		c = p->at;
		if (*c == '-')
			c++;
		if (*c >= '0' && *c <= '9')
		{
			while (*c >= '0' && *c <= '9')
				c++;
			step->index = *c == '\0' || *c == '.' || *c == ',' || *c == ')' ||
						  (c[0] == '-' && c[1] == '>');
		}
		if (step->index)
		{
			step->key = pnstrdup(p->at, c - p->at);
			p->at = c;
		}
		else if ((step->key = ParseName(p)) == NULL)
			return false;
		*path = lappend(*path, step);
	}
	return true;
}

static bool
ParseField(Parser *p, SelectionField *field)
{
	field->column = ParseName(p);
	return field->column != NULL && ParsePath(p, &field->path);
}

/* ---- Values ---- */

/* Up to one of these characters, as it is. */
static char *
ParseUntil(Parser *p, const char *stop)
{
	Size length = strcspn(p->at, stop);
	char *text = pnstrdup(p->at, length);

	p->at += length;
	return text;
}

/* An element of a list or a value in and(), or(): quoted only if it is so whole. */
static char *
ParseElement(Parser *p, bool arrays)
{
	const char *start = p->at;

	if (*p->at == '"')
	{
		char *text = ParseQuoted(p);

		if (text != NULL && (*p->at == ',' || *p->at == ')' || *p->at == '\0'))
			return text;
		p->at = start;
	}
	if (arrays && *p->at == '{')
	{
		Size length = strcspn(p->at + 1, "{}") + 2;

		if (strlen(p->at) >= length && p->at[length - 1] == '}')
		{
			p->at += length;
			return pnstrdup(start, length);
		}
	}
	return ParseUntil(p, ",)");
}

static int
CompareTexts(const ListCell *a, const ListCell *b)
{
	return strcmp(lfirst(a), lfirst(b));
}

static bool
ParseList(Parser *p, SelectionNode *node)
{
	List *values = NIL;
	ListCell *lc;

	SkipSpace(p);
	if (!Accept(p, "("))
		return Fail(p, SYNTAX, "Write in.(a,b,c).", "\"in\" in \"%s\" needs a list", p->what);
	SkipSpace(p);
	for (;;)
	{
		values = lappend(values, ParseElement(p, false));
		if (list_length(values) > SELECTION_MAX_VALUES)
			return Fail(p, LIMITS, NULL, "a list in \"%s\" has more than %d values", p->what,
						SELECTION_MAX_VALUES);
		if (Accept(p, ","))
			continue;
		if (Accept(p, ")"))
			break;
		return Fail(p, SYNTAX, NULL, "the list in \"%s\" is not closed", p->what);
	}
	SkipSpace(p);

	/* As with PostgREST: nothing in the parentheses is an empty list. */
	if (list_length(values) == 1 && ((char *) linitial(values))[0] == '\0')
		return true;
	list_sort(values, CompareTexts);
	foreach(lc, values)
		if (node->values == NIL || strcmp(llast(node->values), lfirst(lc)) != 0)
			node->values = lappend(node->values, lfirst(lc));
	return true;
}

static bool
ParseIs(Parser *p, SelectionNode *node)
{
	static const char *const words[][2] = {{"null", "NULL"},
										   {"not_null", "NOT NULL"},
										   {"true", "TRUE"},
										   {"false", "FALSE"},
										   {"unknown", "UNKNOWN"}};
	char *word = ParseUntil(p, ",)");
	int i;

	for (i = 0; i < lengthof(words); i++)
	{
		if (pg_strcasecmp(word, words[i][0]) == 0)
		{
			node->operator= words[i][1];
			return true;
		}
	}
	return Fail(p, SYNTAX, "Use null, not_null, true, false or unknown.",
				"\"is.%s\" in \"%s\" is not known", word, p->what);
}

/* In patterns * is easier to write than %. */
static bool
CheckPattern(Parser *p, SelectionNode *node)
{
	char *c;
	int slashes = 0;

	for (c = node->value; *c != '\0'; c++)
	{
		if (*c == '*')
			*c = '%';
		slashes = *c == '\\' ? slashes + 1 : 0;
	}
	if (node->quantifier == NULL && slashes % 2 == 1)
		return Fail(p, "22025", NULL, "the pattern in \"%s\" ends with its escape character",
					p->what);
	return true;
}

/* `operator.value`, behind a field. */
static bool
ParseComparison(Parser *p, SelectionNode *node, bool nested)
{
	Size length;
	char *name;
	int i;

	if (Accept(p, "not."))
		node->negated = true;
	length = strspn(p->at, "abcdefghijklmnopqrstuvwxyz");
	name = pnstrdup(p->at, length);
	p->at += length;
	if (*p->at == '(')
	{
		if (Accept(p, "(any)"))
			node->quantifier = "ANY";
		else if (Accept(p, "(all)"))
			node->quantifier = "ALL";
	}
	if (length >= 3 && strcmp(name + length - 3, "fts") == 0)
		return Fail(p, UNSUPPORTED,
					"Full-text search depends on more than the row; use match or imatch.",
					"operator \"%s\" in \"%s\" is not supported", name, p->what);
	if (name[0] == '\0' || !Accept(p, "."))
		return Fail(p, SYNTAX, OPERATORS_HINT, "an operator is expected in \"%s\"", p->what);

	if (node->quantifier == NULL && strcmp(name, "in") == 0)
	{
		node->kind = SELECTION_IN;
		return ParseList(p, node);
	}
	if (node->quantifier == NULL && strcmp(name, "is") == 0)
	{
		node->kind = SELECTION_IS;
		return ParseIs(p, node);
	}

	node->kind = SELECTION_COMPARE;
	if (strcmp(name, "isdistinct") == 0)
	{
		node->kind = SELECTION_DISTINCT;
		if (node->quantifier != NULL)
			return Fail(p, SYNTAX, NULL, "operator \"%s\" in \"%s\" takes no (any) or (all)", name,
						p->what);
	}
	else
	{
		for (i = 0; i < lengthof(operators); i++)
			if (strcmp(name, operators[i].name) == 0)
				break;
		if (i == lengthof(operators))
			return Fail(p, SYNTAX, OPERATORS_HINT, "operator \"%s\" in \"%s\" is not known", name,
						p->what);
		if (node->quantifier != NULL && !operators[i].quantified)
			return Fail(p, SYNTAX, NULL, "operator \"%s\" in \"%s\" takes no (any) or (all)", name,
						p->what);
		node->operator= operators[i].sql;
	}

	if (nested)
		node->value = ParseElement(p, true);
	else
	{
		node->value = pstrdup(p->at);
		p->at += strlen(p->at);
	}
	if (strcmp(name, "like") == 0 || strcmp(name, "ilike") == 0)
		return CheckPattern(p, node);
	return true;
}

static SelectionNode *
MakeNode(Parser *p, SelectionNodeKind kind)
{
	SelectionNode *node = palloc0(sizeof(SelectionNode));

	node->kind = kind;
	if (++p->nconditions > SELECTION_MAX_CONDITIONS)
	{
		Fail(p, LIMITS, NULL, "there are more than %d conditions behind \"?\"",
			 SELECTION_MAX_CONDITIONS);
		return NULL;
	}
	return node;
}

/* ---- and(), or() ---- */

static int
CompareNodes(const ListCell *a, const ListCell *b)
{
	return strcmp(((SelectionNode *) lfirst(a))->sql, ((SelectionNode *) lfirst(b))->sql);
}

/* Sorted, without repetitions. */
static List *
Arrange(List *nodes)
{
	List *result = NIL;
	ListCell *lc;

	list_sort(nodes, CompareNodes);
	foreach(lc, nodes)
		if (result == NIL || strcmp(((SelectionNode *) llast(result))->sql,
									((SelectionNode *) lfirst(lc))->sql) != 0)
			result = lappend(result, lfirst(lc));
	return result;
}

/* At the parenthesis of and() or or(). */
static bool
ParseGroup(Parser *p, SelectionNode *node)
{
	if (++p->depth > SELECTION_MAX_DEPTH)
		return Fail(p, LIMITS, NULL, "conditions behind \"?\" are nested deeper than %d",
					SELECTION_MAX_DEPTH);
	SkipSpace(p);
	if (!Accept(p, "("))
		return Fail(p, SYNTAX, "Write or=(a.eq.1,b.gt.2).", "\"(\" is expected in \"%s\" at \"%s\"",
					p->what, p->at);
	do
	{
		if (!ParseTree(p, &node->children))
			return false;
	} while (Accept(p, ","));
	if (!Accept(p, ")"))
		return Fail(p, SYNTAX, "Write values with commas or parentheses in double quotes.",
					"\",\" or \")\" is expected in \"%s\" at \"%s\"", p->what, p->at);
	SkipSpace(p);
	p->depth--;
	node->children = Arrange(node->children);
	node->sql = SelectionNodeSql(node);
	return true;
}

static bool
IsGroup(const char *at)
{
	if (strncmp(at, "not.", 4) == 0)
		at += 4;
	if (strncmp(at, "and", 3) == 0)
		at += 3;
	else if (strncmp(at, "or", 2) == 0)
		at += 2;
	else
		return false;
	while (*at == ' ')
		at++;
	return *at == '(';
}

/* One member of and() or or(). */
static bool
ParseTree(Parser *p, List **nodes)
{
	SelectionNode *node;

	SkipSpace(p);
	if (IsGroup(p->at))
	{
		bool negated = Accept(p, "not.");

		node = MakeNode(p, Accept(p, "and") ? SELECTION_AND : SELECTION_OR);
		if (node == NULL)
			return false;
		if (node->kind == SELECTION_OR)
			(void) Accept(p, "or");
		node->negated = negated;
		if (!ParseGroup(p, node))
			return false;
	}
	else
	{
		node = MakeNode(p, SELECTION_COMPARE);
		if (node == NULL || !ParseField(p, &node->field))
			return false;
		if (!Accept(p, "."))
			return Fail(p, SYNTAX, "Write or=(a.eq.1,b.gt.2).",
						"an operator is expected in \"%s\" behind \"%s\"", p->what,
						node->field.column);
		if (!ParseComparison(p, node, true))
			return false;
		node->sql = SelectionNodeSql(node);
	}
	*nodes = lappend(*nodes, node);
	return true;
}

/* ---- select, order, limit ---- */

#define PLAIN_HINT "\"select\" takes columns of the table, such as select=id,status, or *."

static bool
ParseSelect(Parser *p, Selection *selection)
{
	bool all = false;

	do
	{
		char *name;
		ListCell *lc;
		bool known = false;

		SkipSpace(p);
		if (Accept(p, "*"))
		{
			all = true;
			SkipSpace(p);
			continue;
		}
		if (strncmp(p->at, "..", 2) == 0)
			return Fail(p, UNSUPPORTED, PLAIN_HINT, "embedding in \"select\" is not supported");
		name = ParseName(p);
		if (name == NULL)
			return false;
		if (strncmp(p->at, "::", 2) == 0)
			return Fail(p, UNSUPPORTED, PLAIN_HINT, "a cast in \"select\" is not supported");
		if (*p->at == ':')
			return Fail(p, UNSUPPORTED, PLAIN_HINT, "an alias in \"select\" is not supported");
		if (*p->at == '(' || *p->at == '!')
			return Fail(p, UNSUPPORTED, PLAIN_HINT, "embedding in \"select\" is not supported");
		if (*p->at == '-')
			return Fail(p, UNSUPPORTED, PLAIN_HINT,
						"a path into a value in \"select\" is not supported");
		if (*p->at == '.')
			return Fail(p, UNSUPPORTED, PLAIN_HINT, "an aggregate in \"select\" is not supported");
		foreach(lc, selection->columns)
			known = known || strcmp(lfirst(lc), name) == 0;
		if (!known)
			selection->columns = lappend(selection->columns, name);
	} while (Accept(p, ","));
	if (all)
		selection->columns = NIL;
	return true;
}

static bool
ParseOrder(Parser *p, Selection *selection)
{
	do
	{
		SelectionOrder *order = palloc0(sizeof(SelectionOrder));
		const char *direction = "";
		const char *nulls = "";

		if (!ParseField(p, &order->field))
			return false;
		if (*p->at == '(')
			return Fail(p, UNSUPPORTED, NULL, "\"order\" by another table is not supported");
		if (Accept(p, ".asc"))
			direction = " ASC";
		else if (Accept(p, ".desc"))
			direction = " DESC";
		if (Accept(p, ".nullsfirst"))
			nulls = " NULLS FIRST";
		else if (Accept(p, ".nullslast"))
			nulls = " NULLS LAST";
		order->direction = psprintf("%s%s", direction, nulls);
		SkipSpace(p);
		selection->order = lappend(selection->order, order);
		if (list_length(selection->order) > SELECTION_MAX_ORDER)
			return Fail(p, LIMITS, NULL, "\"order\" has more than %d columns", SELECTION_MAX_ORDER);
	} while (Accept(p, ","));
	if (*p->at != '\0')
		return Fail(p, SYNTAX, "Write order=a.desc.nullslast,b.",
					"\"order\" cannot be understood at \"%s\"", p->at);
	return true;
}

static bool
ParseLimit(Parser *p, Selection *selection)
{
	Size length = strspn(p->at, "0123456789");

	if (length == 0 || p->at[length] != '\0' || length > 9 || atoi(p->at) < 1 ||
		atoi(p->at) > SELECTION_MAX_LIMIT)
		return Fail(p, "22023", NULL, "\"limit\" has to be a number from 1 to %d",
					SELECTION_MAX_LIMIT);
	selection->limit = atoi(p->at);
	p->at += length;
	return true;
}

/* ---- Parameters ---- */

static bool
ParseCondition(Parser *p, Selection *selection, const char *value)
{
	SelectionNode *node = MakeNode(p, SELECTION_COMPARE);

	if (node == NULL || !ParseField(p, &node->field))
		return false;
	if (*p->at == '.')
		return Fail(p, UNSUPPORTED, "A name with a dot is written in double quotes.",
					"\"%s\": conditions on other tables are not supported", p->what);
	if (*p->at != '\0')
		return Fail(
			p, SYNTAX,
			"Names with other characters than letters, digits, _, $ and - are written in double quotes.",
			"\"%s\" is not the name of a column", p->what);
	p->at = value;
	if (!ParseComparison(p, node, false))
		return false;
	node->sql = SelectionNodeSql(node);
	selection->conditions = lappend(selection->conditions, node);
	return true;
}

static bool
ParseLogic(Parser *p, Selection *selection, const char *name, const char *value)
{
	bool negated = strncmp(name, "not.", 4) == 0;
	SelectionNode *node = MakeNode(p, strcmp(name + (negated ? 4 : 0), "and") == 0 ? SELECTION_AND
																				   : SELECTION_OR);

	if (node == NULL)
		return false;
	node->negated = negated;
	p->at = value;
	if (!ParseGroup(p, node))
		return false;

	/* What is demanded anyway needs no parentheses, and may be looked up. */
	if (node->kind == SELECTION_AND && !negated)
		selection->conditions = list_concat(selection->conditions, node->children);
	else
		selection->conditions = lappend(selection->conditions, node);
	return true;
}

static bool
ParseParameter(Parser *p, Selection *selection, int *seen, const char *name, const char *value)
{
	static const char *const once[] = {"select", "order", "limit"};
	bool done = false;
	int i;

	p->what = name;
	p->at = value;
	for (i = 0; i < lengthof(once); i++)
	{
		if (strcmp(name, once[i]) != 0)
			continue;
		if ((*seen & 1 << i) != 0)
			return Fail(p, SYNTAX, NULL, "\"%s\" comes twice", name);
		*seen |= 1 << i;
		if (!(i == 0   ? ParseSelect(p, selection)
			  : i == 1 ? ParseOrder(p, selection)
					   : ParseLimit(p, selection)))
			return false;
		done = true;
	}
	if (done)
		;
	else if (strcmp(name, "offset") == 0 || strcmp(name, "columns") == 0 ||
			 strcmp(name, "on_conflict") == 0)
		return Fail(p, UNSUPPORTED, NULL, "\"%s\" is not supported", name);
	else if (strcmp(name, "and") == 0 || strcmp(name, "or") == 0 || strcmp(name, "not.and") == 0 ||
			 strcmp(name, "not.or") == 0)
	{
		if (!ParseLogic(p, selection, name, value))
			return false;
	}
	else
	{
		p->at = name;
		if (!ParseCondition(p, selection, value))
			return false;
	}
	if (*p->at != '\0')
		return Fail(p, SYNTAX, NULL, "\"%s\" cannot be understood at \"%s\"", name, p->at);
	return true;
}

Selection *
SelectionParse(const char *text, Size length, SelectionError *error)
{
	Selection *selection = palloc0(sizeof(Selection));
	Parser parser = {0};
	const char *end = text + length;
	int seen = 0;

	memset(error, 0, sizeof(SelectionError));
	parser.error = error;
	parser.what = "";
	if (length > SELECTION_MAX)
	{
		Fail(&parser, LIMITS, NULL, "what follows \"?\" is longer than %d bytes", SELECTION_MAX);
		return NULL;
	}
	while (text < end)
	{
		const char *stop = memchr(text, '&', end - text);
		const char *equals;
		char *name;
		char *value;

		if (stop == NULL)
			stop = end;
		if (stop == text)
		{
			text++;
			continue;
		}
		equals = memchr(text, '=', stop - text);
		if (equals == NULL)
		{
			Fail(&parser, SYNTAX, "Write column=operator.value, and \"&\" between conditions.",
				 "\"%s\" has no \"=\"", pnstrdup(text, stop - text));
			return NULL;
		}
		name = Decode(&parser, text, equals - text);
		value = name != NULL ? Decode(&parser, equals + 1, stop - equals - 1) : NULL;
		if (value == NULL || !ParseParameter(&parser, selection, &seen, name, value))
			return NULL;
		text = stop + 1;
	}
	selection->conditions = Arrange(selection->conditions);
	selection->sql = SelectionJoin(selection->conditions);
	return selection;
}
