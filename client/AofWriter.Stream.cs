using BlockServer.Core;

namespace BlockServer.Client;

// The stream of a writer: opened when there is something to append, again when it broke, and what has no reply yet is sent again first.
public sealed partial class AofWriter
{
    private long _failingSince;
    private TimeSpan _pause;
    private (Frame? Culprit, BlockdException Why)? _refusal;

    /// <summary>Until nothing is left to be done; one at a time.</summary>
    private async Task RunAsync()
    {
        await Task.Yield(); // out of the lock
        while (true)
        {
            try
            {
                await ServeAsync();
            }
            catch (BlockdException e) when (e.IsTransient && IsPatient())
            {
                await PauseAsync();
            }
            catch (BlockdException e)
            {
                Fail(null, e);
            }

            lock (_lock)
            {
                if (!IsDrained) continue;
                _isRunning = false;
                return;
            }
        }
    }

    /// <summary>One stream from its begin to its end.</summary>
    private async Task ServeAsync()
    {
        AofStream stream;
        try
        {
            stream = await _blockd.OpenStreamAsync(_name, _end.Token);
        }
        catch (OperationCanceledException) when (_end.IsCancellationRequested)
        {
            return; // nothing is left
        }

        _refusal = null;
        try
        {
            await SendAgainAsync(stream);
            Kick();
            while (await stream.ReceiveAsync() is { } reply)
            {
                OnReply(reply);
                if (!stream.HasReply) Kick();
            }

            // It was ended from there, and all that had begun is answered. What has no reply is asked for again.
            if (_refusal is { } refusal) Fail(refusal.Culprit, refusal.Why);
            if (!IsIdle()) throw _blockd.Broken(new IOException("the append stream was ended"));
        }
        catch (Exception e) when (IsBreak(e))
        {
            if (!IsIdle()) throw _blockd.Broken(e);
        }
        finally
        {
            lock (_lock) _stream = null;
            await stream.DisposeAsync();
            while (IsSending()) await Task.Yield(); // it fails at once
        }
    }

    private bool IsIdle()
    {
        lock (_lock) return IsDrained;
    }

    private bool IsSending()
    {
        lock (_lock) return _isSending;
    }

    private async Task SendAgainAsync(AofStream stream)
    {
        lock (_lock)
        {
            foreach (Frame frame in _under) AddTo(stream, frame);
        }

        await stream.SendAsync();
        lock (_lock) _stream = stream;
    }

    private void OnReply(AppendReply reply)
    {
        if (reply.Code is AppendCode.Unavailable or AppendCode.DamagedOnTheWay or AppendCode.TooSlow)
            throw new BlockdException("disk-unavailable", 503, AppendProblem.Of(reply.Code).Detail);
        Frame? frame;
        lock (_lock)
        {
            int index = _under.FindIndex(f => f.Sequence == reply.Key.Sequence);
            frame = index < 0 ? null : _under[index];
            if (reply.Code == AppendCode.Done)
            {
                if (frame is null) return; // of what was sent twice
                _under.RemoveAt(index);
                _underBytes -= frame.LengthBytes;
                (_failingSince, _pause) = (0, default);
                if (_isClosed && IsDrained) _drained.TrySetResult();
            }
        }

        if (reply.Code != AppendCode.Done)
        {
            AppendProblem problem = AppendProblem.Of(reply.Code);
            _refusal ??= (frame, new BlockdException(problem.Code, problem.Status, problem.Detail));
            lock (_lock) _stream = null; // nothing more is sent by it
            return;
        }

        ulong offset = reply.OffsetBytes;
        foreach (Append append in frame!.Appends)
        {
            append.Done.TrySetResult(offset);
            offset += (ulong)append.Bytes.Length;
        }
    }

    /// <summary>Nothing more is taken. Whoever is at fault, or else the first, learns the reason, and those behind that they come behind it.</summary>
    private void Fail(Frame? culprit, BlockdException e)
    {
        var failed = new List<(Append Append, BlockdException Why)>();
        lock (_lock)
        {
            _failure = e;
            culprit ??= _under.FirstOrDefault();
            foreach (Frame frame in _under) failed.AddRange(frame.Appends.Select(a => (a, frame == culprit ? e : Failed(e))));
            foreach (Append append in _waiting) failed.Add((append, failed.Count == 0 ? e : Failed(e)));
            // What failed has not landed as far as is known: its numbers are the next ones.
            if (_under.Count > 0) _nextSequence = _under[0].Sequence;
            _under.Clear();
            _waiting.Clear();
            if (_isClosed) _drained.TrySetResult();
        }

        foreach ((Append append, BlockdException why) in failed) append.Done.TrySetException(why);
    }

    private bool IsPatient()
    {
        long now = Environment.TickCount64;
        if (_failingSince == 0) _failingSince = now;
        return now - _failingSince < _options.RetryFor.TotalMilliseconds;
    }

    private async Task PauseAsync()
    {
        _pause = _pause == default ? _options.RetryDelay : _pause < TimeSpan.FromMilliseconds(500) ? 2 * _pause : TimeSpan.FromSeconds(1);
        await Task.Delay(_pause, CancellationToken.None);
    }
}
