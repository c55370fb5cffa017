"""Has a served model answer the last user message of each conversation.

python3 answer.py CONVERSATIONS.jsonl ANSWERS.jsonl [URL]    (default: http://127.0.0.1:8000/v1)

Rows have `messages` or `conversations` with `role` and `content`. Answers that the token limit cut off are left out.
Run it again to resume.
"""
import concurrent.futures, hashlib, json, os, sys, urllib.request

prompts, answers = sys.argv[1:3]
url = sys.argv[3] if len(sys.argv) > 3 else "http://127.0.0.1:8000/v1"
with urllib.request.urlopen(url + "/models") as reply:
    model = json.load(reply)["data"][0]["id"]

def source(line):
    return hashlib.sha256(line.encode()).hexdigest()[:16]

def answer(line):
    row = json.loads(line)
    messages = [dict(role=m["role"], content=m["content"]) for m in row.get("messages") or row["conversations"]]
    last = max(i for i, m in enumerate(messages) if m["role"] == "user")
    messages = messages[: last + 1]  # the question; the answer that follows is replaced
    body = json.dumps({"model": model, "messages": messages, "temperature": 0.7, "max_tokens": 1024}).encode()
    request = urllib.request.Request(url + "/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as reply:
        choice = json.load(reply)["choices"][0]
    if choice["finish_reason"] != "stop":
        return None  # cut off: not an answer that the target would have finished
    messages.append({"role": "assistant", "content": choice["message"]["content"]})
    return json.dumps({"source": source(line), "messages": messages})

done = {json.loads(line)["source"] for line in open(answers)} if os.path.exists(answers) else set()
todo = [line for line in open(prompts) if line.strip() and source(line) not in done]
with open(answers, "a") as out, concurrent.futures.ThreadPoolExecutor(8) as pool:
    for row in pool.map(answer, todo):
        if row:
            print(row, file=out, flush=True)
