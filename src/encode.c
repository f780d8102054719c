/*-------------------------------------------------------------------------
 *
 * encode.c
 *		Rows as JSON: the bytes that clients get.  See encode.h.
 *
 * The common types have a path of their own that gives the same bytes as
 * to_jsonb; other built-in types go through to_jsonb itself, and user-defined
 * ones through encode_nested.c, or through to_jsonb where casts may run.  Numbers of float
 * columns take the detour through numeric because jsonb stores them so:
 * 1e+20 is sent as 100000000000000000000.
 *
 * Process: feed worker, query workers.  Memory: encoders live in the context
 * given; calls leave small garbage in CurrentMemoryContext.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "encode.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"

typedef enum ColumnKind
{
	COLUMN_UNUSED = 0, /* dropped, or not looked at yet */
	COLUMN_BOOL,
	COLUMN_INT2,
	COLUMN_INT4,
	COLUMN_INT8,
	COLUMN_NUMERIC,
	COLUMN_TEXT,   /* varlena whose bytes are the text */
	COLUMN_OUTPUT, /* JSON string of the output function */
	COLUMN_JSONB,
	COLUMN_GENERAL, /* to_jsonb of a built-in type */
	COLUMN_NESTED,	/* of a user-defined type, without casts */
	COLUMN_CAST		/* to_jsonb, which may call user-defined casts */
} ColumnKind;

typedef struct ColumnEncoder
{
	ColumnKind kind;
	char *label; /* "name": with quotes, escapes and colon */
	int label_length;
	FmgrInfo function; /* output function or to_jsonb */
	Oid type;		   /* COLUMN_NESTED */
} ColumnEncoder;

struct RowEncoder
{
	MemoryContext context;
	TupleDesc tupdesc;
	ColumnEncoder columns[FLEXIBLE_ARRAY_MEMBER];
};

/* What jsonb values and texts look like must not depend on the session. */
static const struct
{
	const char *name;
	const char *value;
} pinned_settings[] = {
	{"TimeZone", "UTC"},	 {"DateStyle", "ISO, MDY"},		   {"IntervalStyle", "postgres"},
	{"bytea_output", "hex"}, {"extra_float_digits", "1"},	   {"lc_monetary", "C"},
	{"xmlbinary", "base64"}, {"quote_all_identifiers", "off"},
};

void
EncodePinSettings(void)
{
	int i;

	/*
	 * As if set by SET in the session: above what the configuration file, the
	 * database or the role say.
	 */
	for (i = 0; i < (int) lengthof(pinned_settings); i++)
		SetConfigOption(pinned_settings[i].name, pinned_settings[i].value, PGC_SUSET,
						PGC_S_SESSION);
	/* Types and functions are printed with their schema unless built in. */
	SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_SUSET, PGC_S_SESSION);
}

int
EncodePinnedBegin(void)
{
	int nestlevel = NewGUCNestLevel();
	int i;

	/* They hardly ever differ, and it costs less to look than to set. */
	for (i = 0; i < (int) lengthof(pinned_settings); i++)
		if (strcmp(GetConfigOption(pinned_settings[i].name, false, false),
				   pinned_settings[i].value) != 0)
			(void) set_config_option(pinned_settings[i].name, pinned_settings[i].value, PGC_SUSET,
									 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	return nestlevel;
}

void
EncodePinnedEnd(int nestlevel)
{
	AtEOXact_GUC(true, nestlevel);
}

void
EncodeString(StringInfo out, const char *text, Size length)
{
	static const char hex[] = "0123456789abcdef";
	Size start = 0;
	Size i;

	appendStringInfoCharMacro(out, '"');
	for (i = 0; i < length; i++)
	{
		unsigned char c = (unsigned char) text[i];
		char escape[6];
		int n;

		if (likely(c >= 0x20 && c != '"' && c != '\\'))
			continue;

		/* The same escapes as escape_json of the server. */
		escape[0] = '\\';
		n = 2;
		switch (c)
		{
			case '"':
			case '\\':
				escape[1] = (char) c;
				break;
			case '\b':
				escape[1] = 'b';
				break;
			case '\f':
				escape[1] = 'f';
				break;
			case '\n':
				escape[1] = 'n';
				break;
			case '\r':
				escape[1] = 'r';
				break;
			case '\t':
				escape[1] = 't';
				break;
			default:
				escape[1] = 'u';
				escape[2] = escape[3] = '0';
				escape[4] = hex[c >> 4];
				escape[5] = hex[c & 15];
				n = 6;
		}
		if (i > start)
			appendBinaryStringInfo(out, text + start, (int) (i - start));
		appendBinaryStringInfo(out, escape, n);
		start = i + 1;
	}
	if (length > start)
		appendBinaryStringInfo(out, text + start, (int) (length - start));
	appendStringInfoCharMacro(out, '"');
}

RowEncoder *
EncoderCreate(TupleDesc tupdesc, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	RowEncoder *encoder;
	int i;

	encoder = palloc0(offsetof(RowEncoder, columns) + sizeof(ColumnEncoder) * tupdesc->natts);
	encoder->context = context;
	encoder->tupdesc = tupdesc;
	for (i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);
		StringInfoData label;

		if (att->attisdropped)
			continue;
		initStringInfo(&label);
		EncodeString(&label, NameStr(att->attname), strlen(NameStr(att->attname)));
		appendStringInfoChar(&label, ':');
		encoder->columns[i].label = label.data;
		encoder->columns[i].label_length = label.len;
	}
	MemoryContextSwitchTo(old);
	return encoder;
}

/*
 * Types are looked at when a column is encoded for the first time: a column
 * that nobody may see need not have a type that can be sent.
 */
static void
PrepareColumn(RowEncoder *encoder, int attno)
{
	ColumnEncoder *column = &encoder->columns[attno - 1];
	Form_pg_attribute att = TupleDescAttr(encoder->tupdesc, attno - 1);
	Oid base = getBaseType(att->atttypid);
	Oid output;
	bool varlena;

	switch (base)
	{
		case BOOLOID:
			column->kind = COLUMN_BOOL;
			return;
		case INT2OID:
			column->kind = COLUMN_INT2;
			return;
		case INT4OID:
			column->kind = COLUMN_INT4;
			return;
		case INT8OID:
			column->kind = COLUMN_INT8;
			return;
		case NUMERICOID:
			column->kind = COLUMN_NUMERIC;
			return;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
			column->kind = COLUMN_TEXT;
			return;
		case JSONBOID:
			column->kind = COLUMN_JSONB;
			return;
		case UUIDOID:
		case OIDOID:
		case NAMEOID:
		case BYTEAOID:
		case TIMEOID:
		case INETOID:
		case CIDROID:
			getTypeOutputInfo(base, &output, &varlena);
			fmgr_info_cxt(output, &column->function, encoder->context);
			column->kind = COLUMN_OUTPUT;
			return;
		default:
			break;
	}

	if (base >= FirstNormalObjectId)
	{
		column->type = base;
		column->kind = COLUMN_NESTED;
		return;
	}
	EncodeToJsonb(&column->function, base, encoder->context);
	column->kind = COLUMN_GENERAL;
}

void
EncoderUseCasts(RowEncoder *encoder, int attno)
{
	ColumnEncoder *column = &encoder->columns[attno - 1];

	EncodeToJsonb(&column->function, TupleDescAttr(encoder->tupdesc, attno - 1)->atttypid,
				  encoder->context);
	column->kind = COLUMN_CAST;
}

void
EncodeLabel(RowEncoder *encoder, StringInfo out, int attno)
{
	ColumnEncoder *column = &encoder->columns[attno - 1];

	appendBinaryStringInfo(out, column->label, column->label_length);
}

void
EncodeValue(RowEncoder *encoder, StringInfo out, int attno, Datum value, bool isnull)
{
	ColumnEncoder *column = &encoder->columns[attno - 1];
	char buffer[32];
	int length;

	if (isnull)
	{
		appendBinaryStringInfo(out, "null", 4);
		return;
	}
	if (unlikely(column->kind == COLUMN_UNUSED))
		PrepareColumn(encoder, attno);

	switch (column->kind)
	{
		case COLUMN_BOOL:
			if (DatumGetBool(value))
				appendBinaryStringInfo(out, "true", 4);
			else
				appendBinaryStringInfo(out, "false", 5);
			break;
		case COLUMN_INT2:
			length = pg_itoa(DatumGetInt16(value), buffer);
			appendBinaryStringInfo(out, buffer, length);
			break;
		case COLUMN_INT4:
			length = pg_ltoa(DatumGetInt32(value), buffer);
			appendBinaryStringInfo(out, buffer, length);
			break;
		case COLUMN_INT8:
			length = pg_lltoa(DatumGetInt64(value), buffer);
			appendBinaryStringInfo(out, buffer, length);
			break;
		case COLUMN_NUMERIC:
		{
			Datum plain = PointerGetDatum(PG_DETOAST_DATUM(value));
			char *text = DatumGetCString(DirectFunctionCall1(numeric_out, plain));

			/* NaN and the infinities are no JSON numbers. */
			if (numeric_is_nan(DatumGetNumeric(plain)) || numeric_is_inf(DatumGetNumeric(plain)))
				EncodeString(out, text, strlen(text));
			else
				appendStringInfoString(out, text);
		}
		break;
		case COLUMN_TEXT:
		{
			struct varlena *text = PG_DETOAST_DATUM_PACKED(value);

			EncodeString(out, VARDATA_ANY(text), VARSIZE_ANY_EXHDR(text));
		}
		break;
		case COLUMN_OUTPUT:
		{
			char *text = OutputFunctionCall(&column->function, value);

			EncodeString(out, text, strlen(text));
		}
		break;
		case COLUMN_JSONB:
		{
			Jsonb *json = DatumGetJsonbP(value);

			(void) JsonbToCString(out, &json->root, VARSIZE(json));
		}
		break;
		case COLUMN_GENERAL:
		{
			Jsonb *json = DatumGetJsonbP(FunctionCall1(&column->function, value));

			(void) JsonbToCString(out, &json->root, VARSIZE(json));
		}
		break;
		case COLUMN_NESTED:
			EncodeNested(out, column->type, value, false);
			break;
		case COLUMN_CAST:
		{
			/* Whatever the cast's function does to settings ends with it. */
			int nestlevel = NewGUCNestLevel();
			Jsonb *json = DatumGetJsonbP(FunctionCall1(&column->function, value));

			AtEOXact_GUC(false, nestlevel);
			(void) JsonbToCString(out, &json->root, VARSIZE(json));
		}
		break;
		case COLUMN_UNUSED:
			elog(ERROR, "column %d of an encoder is dropped", attno);
	}
}

void
EncodeColumn(RowEncoder *encoder, StringInfo out, int attno, Datum value, bool isnull)
{
	EncodeLabel(encoder, out, attno);
	EncodeValue(encoder, out, attno, value, isnull);
}

void
EncodeRow(RowEncoder *encoder, StringInfo out, const int16 *attnos, int nattnos,
		  const Datum *values, const bool *isnull)
{
	int i;

	appendStringInfoCharMacro(out, '{');
	for (i = 0; i < nattnos; i++)
	{
		if (i > 0)
			appendStringInfoCharMacro(out, ',');
		EncodeColumn(encoder, out, attnos[i], values[attnos[i] - 1], isnull[attnos[i] - 1]);
	}
	appendStringInfoCharMacro(out, '}');
}

bool
EncodeRowIsTooLarge(TupleDesc tupdesc, const int16 *attnos, int nattnos, const Datum *values,
					const bool *isnull)
{
	Size size = 0;
	int i;

	for (i = 0; i < nattnos; i++)
	{
		int at = attnos[i] - 1;

		/* An external value is not fetched for it. */
		if (TupleDescAttr(tupdesc, at)->attlen == -1 && !isnull[at])
			size += toast_raw_datum_size(values[at]);
	}
	return size > ENCODE_MAX_ROW;
}
