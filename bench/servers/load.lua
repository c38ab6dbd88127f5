-- What wrk sends: the bodies of a file, one a line, each once; and what it prints at the end, as JSON.
-- Arguments: the file, the path, how many bodies to leave out, and milliseconds between two requests of a connection in
-- the mean: they arrive independently of each other (Poisson), and not all at once.
local bodies, place, path, pause = {}, 0, "", 0

function init(args)
  for line in io.lines(args[1]) do bodies[#bodies + 1] = line end
  path, place, pause = args[2], tonumber(args[3]), tonumber(args[4])
  math.randomseed(1)
end

function delay() return math.floor(-math.log(1 - math.random()) * pause + 0.5) end

function request()
  place = place % #bodies + 1
  return wrk.format("POST", path, {["Content-Type"] = "application/json"}, bodies[place])
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.4f, "refused": %d, "failed": %d, "p50_ms": %.2f, "p99_ms": %.2f, "max_ms": %.2f}\n',
    summary.requests, summary.duration / 1e6, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
