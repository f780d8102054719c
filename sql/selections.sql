-- What follows "?" in a channel's name: how it is understood.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_changefeed;
RESET client_min_messages;

-- Errors with what clients are told, in the order of the values.
CREATE FUNCTION understood(selection text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    hint text;
BEGIN
    RETURN changefeed._selection(selection);
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    RETURN format('%s: %s%s', SQLSTATE, SQLERRM, CASE WHEN hint <> '' THEN ' -- ' || hint ELSE '' END);
END
$$;
\pset format unaligned
\pset tuples_only

-- Operators
SELECT s, understood(s) FROM unnest(ARRAY[
    '', 'a=eq.1', 'a=neq.1', 'a=gt.1', 'a=gte.1', 'a=lt.1', 'a=lte.1', 'a=like.x*y', 'a=ilike.*x',
    'a=match.^x$', 'a=imatch.x|y', 'a=in.(1,2)', 'a=is.null', 'a=is.NOT_NULL', 'a=is.true', 'a=is.false',
    'a=is.unknown', 'a=isdistinct.1', 'a=cs.{1,2}', 'a=cd.[1,2)', 'a=ov.{1}', 'a=sl.(1,2)', 'a=sr.(1,2)',
    'a=nxr.(1,2)', 'a=nxl.(1,2)', 'a=adj.(1,2)', 'a=not.eq.1', 'a=not.in.(1)', 'a=not.is.null',
    'a=eq(any).{1,2}', 'a=like(all).{x*,*y}', 'a=not.gt(any).{1,2}', 'a=eq.', 'a=eq.a.b', 'a=in.()']) WITH ORDINALITY u (s, n) ORDER BY n;

-- Values and names
SELECT s, understood(s) FROM unnest(ARRAY[
    'a=eq.x%20y', 'a=eq.x+y', 'a=eq.x%2By', 'a=eq.%26%3D%25', 'a=eq.''; DROP--', 'a=eq.back\slash', 'a=eq.caf%C3%A9', 'a=eq."x"',
    'a=in.("a,b","c)d",e "f",g)', 'a=in.("q\"uote","back\\slash")', 'a=in.( 1, 2 )', 'a=in.(2,1,2)', 'a=in.("")',
    'A%20b=eq.1', '"a.b"=eq.1', '"a""=eq.1', 'a-b=eq.1', '%C3%A9=eq.1', '1=eq.1', '"select"=eq.1', 'select=eq']) WITH ORDINALITY u (s, n) ORDER BY n;

-- Paths into json
SELECT s, understood(s) FROM unnest(ARRAY[
    'd->a=eq.1', 'd->>a=eq.x', 'd->a->b->>c=like.x*', 'd->0=eq.1', 'd->-1->>2=eq.x', 'd->0x=eq.1', 'd->"a b"->>"c.d"=eq.1',
    'or=(d->>a.eq.1,d->0.eq.2)', 'd->=eq.1', 'd>a=eq.1']) WITH ORDINALITY u (s, n) ORDER BY n;

-- Several conditions; equal ones are written equally
SELECT s, understood(s) FROM unnest(ARRAY[
    'a=eq.1&b=eq.2', 'b=eq.2&a=eq.1', 'b=eq.2&a=eq.1&b=eq.2', 'and=(b.eq.2,a.eq.1)', 'and=(b.eq.2,and(a.eq.1))',
    'or=(a.is.null,b.in.(1,2))', 'or=(b.in.(2,1),a.is.null)', 'not.or=(a.eq.1,b.eq.2)', 'not.and=(a.eq.1,b.eq.2)',
    'or=(a.eq.1,and(b.not.gt.2,not.or(c.eq.3,d.is.true)))', 'or=( a.eq.1 , b.eq.2 )', 'or=(a.eq."x,y",b.eq."p)q")',
    'or=(a.cs.{1,2},b.eq.3)', 'or=(a.cs."[1,2)",b.eq.3)', 'or=(order.eq.1,"and".eq.2)', 'or=(a.eq.1)']) WITH ORDINALITY u (s, n) ORDER BY n;

-- select, order, limit
SELECT s, understood(s) FROM unnest(ARRAY[
    'select=*', 'select=a,b', 'select=b, a,b', 'select=a,*', 'select="a,b"', 'order=a', 'order=a.desc', 'order=a.asc.nullslast,b.nullsfirst',
    'order=d->>x.desc', 'limit=50', 'limit=10000', 'select=a&order=b.desc&limit=5&c=eq.1']) WITH ORDINALITY u (s, n) ORDER BY n;

-- What is refused
SELECT s, understood(s) FROM unnest(ARRAY[
    'a', '&', 'a=eq.1&', 'a=eq.1&&b=eq.2', '=eq.1', 'a=', 'a=1', 'a=eq', 'a=xx.1', 'a=eq(any.1', 'a=eq(some).1', 'a=neq(any).{1}', 'a=EQ.1',
    'a=not.not.eq.1', 'a=not.1', 'a=fts.x', 'a=wfts(english).x', 'a=is.maybe', 'a=is(any).null', 'a=isdistinct(any).1',
    'a=in.1', 'a=in.(1', 'a=in.(1)x', 'a=in', 'a=eq.%', 'a=eq.%zz', 'a=eq.%4', 'a=eq.%00', 'a=eq.%FF', 'a=eq.x;y', 'a=like.x\', 'a=like.x\\',
    'a.b=eq.1', 'a:b=eq.1', 'a b.=eq.1', 'or=', 'or=()', 'or=(a.eq.1', 'or=(a.eq.1))', 'or=(a.eq.1)x', 'or=(a)', 'or=(a.eq.1,)', 'or=(not.a.eq.1)', 'or=a.eq.1', 'and=(xor(a.eq.1))',
    'select=', 'select=a,', 'select=x:a', 'select=a::text', 'select=customers(name)', 'select=...customers(name)', 'select=d->a', 'select=a.sum()', 'select=a&select=b',
    'order=', 'order=a.up', 'order=a.desc.asc', 'order=a.nullslast.desc', 'order=customers(name)', 'order=a&order=b',
    'limit=', 'limit=0', 'limit=-1', 'limit=x', 'limit=1x', 'limit=10001', 'limit=99999999999', 'limit=1&limit=2', 'offset=1', 'columns=a', 'on_conflict=a']) WITH ORDINALITY u (s, n) ORDER BY n;

-- Limits
SELECT left(understood('a=eq.' || repeat('x', 4091)), 20) AS at_limit, understood('a=eq.' || repeat('x', 4092)) AS beyond;
SELECT left(understood(repeat('a=eq.1&', 99) || 'b=eq.1'), 60) AS at_limit, understood(repeat('a=eq.1&', 100) || 'b=eq.1') AS beyond;
SELECT left(understood('a=in.(' || repeat('1,', 499) || '1)'), 60) AS at_limit, understood('a=in.(' || repeat('1,', 500) || '1)') AS beyond;
SELECT understood('or=' || repeat('(and', 9) || '(a.eq.1)' || repeat(')', 9)) AS at_limit,
       understood('or=' || repeat('(and', 10) || '(a.eq.1)' || repeat(')', 10)) AS beyond;
SELECT understood('order=a,b,c,d,e,f,g,h') AS at_limit, understood('order=a,b,c,d,e,f,g,h,i') AS beyond;

-- What is understood is always SQL with the same literals: nothing escapes.
CREATE TABLE t (a text);
INSERT INTO t SELECT v FROM unnest(ARRAY['x', '''', '\', '"', '{', '}', ',', '{"a"}', 'a''b\c"d,e', '%', E'\n', '$$', 'NULL']) v;
CREATE FUNCTION found(selection text) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY EXECUTE replace(changefeed._selection(selection), 'SELECT *', 'SELECT a FROM t');
END
$$;
CREATE FUNCTION escaped(value text) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg('%' || encode(substring(convert_to(value, 'UTF8') FROM i FOR 1), 'hex'), '' ORDER BY i)
      FROM generate_series(1, length(convert_to(value, 'UTF8'))) i
$$;
SELECT count(*) AS eq FROM t WHERE ARRAY(SELECT found('a=eq.' || escaped(a))) = ARRAY[a];
SELECT count(*) AS in FROM t WHERE ARRAY(SELECT found('a=in.(' || escaped('"' || replace(replace(a, '\', '\\'), '"', '\"') || '"') || ')')) = ARRAY[a];
SELECT count(*) AS nested FROM t WHERE ARRAY(SELECT found('or=(a.eq.' || escaped('"' || replace(replace(a, '\', '\\'), '"', '\"') || '"') || ')')) = ARRAY[a];

DROP TABLE t;
DROP FUNCTION understood(text), found(text), escaped(text);
