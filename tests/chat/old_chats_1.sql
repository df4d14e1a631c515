BEGIN TRANSACTION;
CREATE TABLE chats (
        id INTEGER PRIMARY KEY,
        title TEXT NOT NULL,
        settings TEXT NOT NULL DEFAULT '{}',
        leaf INTEGER,
        updated REAL NOT NULL,
        deleted REAL
    );
INSERT INTO "chats" VALUES(1,'Old','{}',1,1700000000.0,NULL);
CREATE TABLE events (
        turn INTEGER NOT NULL REFERENCES turns ON DELETE CASCADE,
        number INTEGER NOT NULL,
        record TEXT NOT NULL,
        PRIMARY KEY (turn, number)
    ) WITHOUT ROWID;
INSERT INTO "events" VALUES(1,0,'{"version":1,"type":"prompt","done":3,"total":3,"tokens":[{"id":7,"text":"Grün","is_draft":false,"confidence":null,"is_thinking":false}]}');
INSERT INTO "events" VALUES(1,1,'{"version":1,"type":"round","index":0,"anchor":7,"drafted":[8,9],"confidence":[0.5,0.25],"verified":2,"accepted":1,"next":11,"tokens":[{"id":8,"text":" ist","is_draft":true,"confidence":0.5,"is_thinking":false},{"id":11,"text":" gut","is_draft":false,"confidence":null,"is_thinking":false}],"rejected":[{"id":9,"text":"?","is_draft":true,"confidence":0.25,"is_thinking":false}],"context_tokens":6,"draft_seconds":0.001,"verify_seconds":0.002,"seconds":0.004,"parked":false}');
INSERT INTO "events" VALUES(1,2,'{"version":1,"type":"finished","reason":"stop_token","token_ids":[7,8,11],"text":"Grün ist gut","thinking":"","tail":"","ends_thinking":false,"stats":{"prompt_tokens":3,"new_tokens":3,"rounds":1,"drafted":2,"verified":2,"accepted":1,"prefill_seconds":0.5,"decode_seconds":0.25,"cached_tokens":0,"thinking_tokens":0,"preemptions":0,"parked":0}}');
CREATE TABLE turns (
        id INTEGER PRIMARY KEY,
        chat INTEGER NOT NULL REFERENCES chats ON DELETE CASCADE,
        parent INTEGER,
        prompt TEXT NOT NULL,
        opening TEXT NOT NULL DEFAULT '',
        model TEXT NOT NULL DEFAULT '',
        answer TEXT,
        events BLOB
    );
INSERT INTO "turns" VALUES(1,1,NULL,'Old question?','','demo','Grün ist gut',NULL);
CREATE INDEX turns_of_chat ON turns (chat, parent);
COMMIT;
PRAGMA user_version = 1;
