using System.Diagnostics;
using BlockServer.Core;

namespace BlockServer.Client;

/// <summary>How an <see cref="AofWriter"/> behaves.</summary>
public sealed record AofWriterOptions
{
    /// <summary>Identity of the client; empty draws one. One that was used before goes on only with its <see cref="NextSequence"/>.</summary>
    public Guid Client { get; init; }

    /// <summary>Number of the first append: 1 for an identity that was never used.</summary>
    public ulong NextSequence { get; init; } = 1;

    /// <summary>Appends that go together are one append for the store, with one number: up to 256 of them and 1 MiB, whole or not at all
    /// together. Faster when very many are on their way; an identity and its number cannot be taken up again by another writer, which would
    /// have to know what went together.</summary>
    public bool Joins { get; init; }

    /// <summary>How long an append is repeated while the daemon is away, before it fails.</summary>
    public TimeSpan RetryFor { get; init; } = TimeSpan.FromMinutes(2);

    /// <summary>Pause before the first repeat; it doubles up to a second.</summary>
    public TimeSpan RetryDelay { get; init; } = TimeSpan.FromMilliseconds(20);
}

/// <summary>
/// Appends to one append-only volume, exactly once each: every append has a number, and when the stream breaks or the daemon is restarted
/// what has no reply is sent again with the same number, which the store recognises. It keeps one append stream open (docs/api.md) and does not
/// wait for one append to be durable before it sends the next: at most 16 are on their way, and they lie in the order in which they were asked
/// for. Thread-safe. After an append failed the writer takes no other one, since what became of it is not known to those behind it.
/// </summary>
public sealed partial class AofWriter : IAsyncDisposable
{
    // Together so many bytes at most in one frame that is joined; a single append may have more.
    private const int BytesAtOnce = 1 << 20;

    // Of one frame when they are joined.
    private const int JoinedMax = 256;

    // Frames that are joined: while one is on its way the next one gathers.
    private const int JoinedWindow = 1;

    // Bytes on their way; a single append may have more.
    private const int UnderBytesMax = 4 << 20;

    // Appends that are not durable yet; who asks for one more waits.
    private const int AppendsMax = 1024;

    // Much less than a flush takes.
    private static readonly TimeSpan s_gather = TimeSpan.FromMicroseconds(150);

    private readonly BlockdClient _blockd;
    private readonly string _name;
    private readonly AofWriterOptions _options;
    private readonly Lock _lock = new();
    private readonly SemaphoreSlim _room = new(AppendsMax, AppendsMax);
    private readonly Queue<Append> _waiting = [];
    private readonly List<Frame> _under = [];
    private readonly TaskCompletionSource _drained = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly CancellationTokenSource _end = new();
    private Task _running = Task.CompletedTask;
    private AofStream? _stream;
    private ulong _nextSequence;
    private int _underBytes, _together;
    private bool _isRunning, _isSending, _isClosed;
    private BlockdException? _failure;

    private sealed record Append(ReadOnlyMemory<byte> Bytes)
    {
        public TaskCompletionSource<ulong> Done { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);
    }

    /// <summary>One append, or several that are joined into one, with its number.</summary>
    private sealed record Frame(ulong Sequence, List<Append> Appends, int LengthBytes);

    /// <summary>Appends to the volume <paramref name="name"/> through <paramref name="blockd"/>, which stays the caller's.</summary>
    public AofWriter(BlockdClient blockd, string name, AofWriterOptions? options = null)
    {
        _blockd = blockd;
        _name = name;
        _options = options ?? new AofWriterOptions();
        Client = _options.Client == Guid.Empty ? Guid.NewGuid() : _options.Client;
        _nextSequence = _options.NextSequence;
    }

    /// <summary>Identity by which the store knows the appends.</summary>
    public Guid Client { get; }

    /// <summary>Number of the first append that is not known to have landed; all in front of it have.</summary>
    public ulong NextSequence
    {
        get
        {
            lock (_lock) return _under.Count > 0 ? _under[0].Sequence : _nextSequence;
        }
    }

    private int Window => _options.Joins ? JoinedWindow : AppendWire.ClientWindow;

    private bool MaySend => _waiting.Count > 0 && _under.Count < Window && (_under.Count == 0 || _underBytes + _waiting.Peek().Bytes.Length <= UnderBytesMax);

    /// <summary>Appends 1 byte to 32 MiB, whole or not at all, and answers at which offset they lie, when they are durable.</summary>
    /// <param name="bytes">Borrowed until the answer.</param>
    /// <param name="cancel">Gives up while it waits for its turn.</param>
    public async Task<ulong> AppendAsync(ReadOnlyMemory<byte> bytes, CancellationToken cancel = default)
    {
        if (bytes.Length is 0 or > Units.RequestBytesMax) throw new ArgumentOutOfRangeException(nameof(bytes), "an append has 1 byte to 32 MiB");
        await _room.WaitAsync(cancel);
        try
        {
            var append = new Append(bytes);
            lock (_lock)
            {
                if (_failure is { } failure) throw Failed(failure);
                ObjectDisposedException.ThrowIf(_isClosed, this);
                _waiting.Enqueue(append);
            }

            Kick();
            return await append.Done.Task;
        }
        finally
        {
            _room.Release();
        }
    }

    /// <summary>Waits until what was asked for has landed or failed.</summary>
    public async ValueTask DisposeAsync()
    {
        AofStream? stream;
        lock (_lock)
        {
            _isClosed = true;
            if (IsDrained) _drained.TrySetResult();
        }

        await _drained.Task;
        lock (_lock) stream = _stream;
        await _end.CancelAsync();
        if (stream is not null) await stream.DisposeAsync();
        await _running;
        _end.Dispose();
    }

    private bool IsDrained => _waiting.Count == 0 && _under.Count == 0;

    /// <summary>Sends what may be sent, unless somebody is at it.</summary>
    private void Kick()
    {
        AofStream stream;
        lock (_lock)
        {
            if (_isSending || _failure is not null || IsDrained) return;
            if (_stream is null)
            {
                if (_isRunning) return;
                _isRunning = true;
                _running = RunAsync();
                return;
            }

            if (!MaySend) return;
            _isSending = true;
            stream = _stream;
        }

        _ = SendAllAsync(stream);
    }

    /// <summary>Sends as long as there is something to send; whoever comes meanwhile finds it sent.</summary>
    private async Task SendAllAsync(AofStream stream)
    {
        try
        {
            while (true)
            {
                if (_options.Joins) await GatherAsync();
                lock (_lock)
                {
                    bool isAny = false;
                    while (_stream == stream && MaySend)
                    {
                        Frame frame = NextFrame();
                        _under.Add(frame);
                        _underBytes += frame.LengthBytes;
                        AddTo(stream, frame);
                        isAny = true;
                    }

                    if (!isAny)
                    {
                        _isSending = false;
                        return;
                    }
                }

                await stream.SendAsync();
            }
        }
        catch (Exception e) when (IsBreak(e))
        {
            lock (_lock) _isSending = false;
            await stream.DisposeAsync(); // who reads it sees to the rest
        }
    }

    /// <summary>Whoever was answered together asks again together, in a moment: without this the first of them would go alone, and all others
    /// would wait for two flushes instead of one.</summary>
    private async Task GatherAsync()
    {
        long since = Stopwatch.GetTimestamp();
        while (Waiting() < _together && Stopwatch.GetElapsedTime(since) < s_gather) await Task.Yield();

        int Waiting()
        {
            lock (_lock) return _isClosed || _under.Count > 0 ? int.MaxValue : _waiting.Count;
        }
    }

    private Frame NextFrame()
    {
        var appends = new List<Append> { _waiting.Dequeue() };
        int bytes = appends[0].Bytes.Length;
        while (_options.Joins && appends.Count < JoinedMax && _waiting.TryPeek(out Append? next) && bytes + next.Bytes.Length <= BytesAtOnce)
        {
            bytes += next.Bytes.Length;
            appends.Add(_waiting.Dequeue());
        }

        _together = appends.Count;
        return new Frame(_nextSequence++, appends, bytes);
    }

    private void AddTo(AofStream stream, Frame frame)
    {
        var pieces = new ReadOnlyMemory<byte>[frame.Appends.Count];
        for (int i = 0; i < pieces.Length; i++) pieces[i] = frame.Appends[i].Bytes;
        stream.Add(new AppendKey(Client, frame.Sequence), pieces);
    }

    private static bool IsBreak(Exception e) => e is IOException or ObjectDisposedException or InvalidOperationException or OperationCanceledException;

    private static BlockdException Failed(BlockdException e) => new(e.Code, e.Status, "an append in front of it failed: " + e.Message, e);
}
