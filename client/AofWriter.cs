using System.Diagnostics;
using System.Threading.Channels;
using BlockServer.Core;
using BlockServer.Core.Api;

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
/// Appends to one append-only volume, exactly once each: every append has a number, and when a connection breaks or the daemon is
/// restarted it is sent again with the same number, which the store recognises. Appends that are asked for while others are on their way go
/// together, at most 16 (joined: 256) and 1 MiB a request, and lie in the order in which they were asked for. Thread-safe. After an append failed the writer
/// takes no other one, since what became of it is not known to those behind it.
/// </summary>
public sealed class AofWriter : IAsyncDisposable
{
    // Together so many bytes at most; a single one may have more.
    private const int BytesAtOnce = 1 << 20;

    // Of one request when they are joined.
    private const int JoinedMax = 256;

    // Appends that wait; who asks for one more waits too.
    private const int WaitingMax = 1024;

    // Much less than a flush takes.
    private static readonly TimeSpan s_gather = TimeSpan.FromMicroseconds(150);

    private readonly BlockdClient _blockd;
    private readonly string _name;
    private readonly AofWriterOptions _options;
    private readonly Channel<Append> _waiting = Channel.CreateBounded<Append>(new BoundedChannelOptions(WaitingMax) { SingleReader = true });
    private readonly CancellationTokenSource _end = new();
    private readonly Task _sending;
    private Append? _kept;
    private int _together;
    private BlockdException? _failure;

    private sealed record Append(ReadOnlyMemory<byte> Bytes)
    {
        public TaskCompletionSource<ulong> Done { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);
    }

    /// <summary>Appends to the volume <paramref name="name"/> through <paramref name="blockd"/>, which stays the caller's.</summary>
    public AofWriter(BlockdClient blockd, string name, AofWriterOptions? options = null)
    {
        _blockd = blockd;
        _name = name;
        _options = options ?? new AofWriterOptions();
        Client = _options.Client == Guid.Empty ? Guid.NewGuid() : _options.Client;
        NextSequence = _options.NextSequence;
        _sending = SendAllAsync();
    }

    /// <summary>Identity by which the store knows the appends.</summary>
    public Guid Client { get; }

    /// <summary>Number of the next append that is sent; all in front of it have landed.</summary>
    public ulong NextSequence { get; private set; }

    /// <summary>Appends 1 byte to 32 MiB, whole or not at all, and answers at which offset they lie, when they are durable.</summary>
    /// <param name="bytes">Borrowed until the answer.</param>
    /// <param name="cancel">Gives up while it waits for its turn.</param>
    public async Task<ulong> AppendAsync(ReadOnlyMemory<byte> bytes, CancellationToken cancel = default)
    {
        if (bytes.Length is 0 or > Units.RequestBytesMax) throw new ArgumentOutOfRangeException(nameof(bytes), "an append has 1 byte to 32 MiB");
        var append = new Append(bytes);
        try
        {
            await _waiting.Writer.WriteAsync(append, cancel);
        }
        catch (ChannelClosedException)
        {
            throw _failure is null ? new ObjectDisposedException(nameof(AofWriter)) : Failed(_failure);
        }

        return await append.Done.Task;
    }

    /// <summary>Waits until what was asked for has landed or failed.</summary>
    public async ValueTask DisposeAsync()
    {
        _waiting.Writer.TryComplete();
        await _sending;
        _end.Dispose();
    }

    private async Task SendAllAsync()
    {
        var batch = new List<Append>();
        while (_failure is null && await GatherAsync(batch))
        {
            try
            {
                await SendAsync(batch);
            }
            catch (BlockdException e)
            {
                _failure = e;
                _waiting.Writer.TryComplete();
                foreach (Append append in batch) append.Done.TrySetException(e);
            }

            batch.Clear();
        }

        if (_failure is not { } failure) return;
        _kept?.Done.TrySetException(Failed(failure));
        await foreach (Append append in _waiting.Reader.ReadAllAsync()) append.Done.TrySetException(Failed(failure));
    }

    /// <summary>Takes what waits, as much as goes together; false when there is nothing more to come.</summary>
    private async Task<bool> GatherAsync(List<Append> batch)
    {
        if (_kept is null && !await _waiting.Reader.WaitToReadAsync()) return false;
        // Whoever was answered together asks again together, in a moment: without this the first of them would go alone, and all
        // others would wait for two flushes instead of one.
        long since = Stopwatch.GetTimestamp();
        while (_waiting.Reader.Count < _together && Stopwatch.GetElapsedTime(since) < s_gather && !_waiting.Reader.Completion.IsCompleted) await Task.Yield();
        int bytes = 0;
        while (batch.Count < (_options.Joins ? JoinedMax : AppendMedia.AppendsMax) && (_kept is not null || _waiting.Reader.TryRead(out _kept)))
        {
            if (batch.Count > 0 && bytes + _kept.Bytes.Length > BytesAtOnce) break;
            bytes += _kept.Bytes.Length;
            batch.Add(_kept);
            _kept = null;
        }

        _together = batch.Count;
        return true;
    }

    /// <summary>Sends until all of it has landed; what has is taken off the list.</summary>
    private async Task SendAsync(List<Append> batch)
    {
        long start = Environment.TickCount64;
        TimeSpan pause = _options.RetryDelay;
        while (batch.Count > 0)
        {
            try
            {
                AppendAnswerInfo answer = await _blockd.AppendAsync(_name, Client, NextSequence, [.. batch.Select(append => append.Bytes)], _options.Joins);
                NextSequence += (ulong)answer.Appends.Count;
                Settle(batch, answer.Appends);
                if (answer.Code is { } code) throw new BlockdException(code, 0, answer.Detail ?? code);
            }
            catch (BlockdException e) when (e.IsTransient && Environment.TickCount64 - start < _options.RetryFor.TotalMilliseconds)
            {
                await Task.Delay(pause, _end.Token);
                pause = pause < TimeSpan.FromMilliseconds(500) ? 2 * pause : TimeSpan.FromSeconds(1);
            }
        }
    }

    private void Settle(List<Append> batch, IReadOnlyList<AppendedInfo> landed)
    {
        if (_options.Joins && landed.Count == 1)
        {
            ulong offset = landed[0].OffsetBytes;
            foreach (Append append in batch)
            {
                append.Done.TrySetResult(offset);
                offset += (ulong)append.Bytes.Length;
            }

            batch.Clear();
            return;
        }

        for (int i = 0; i < landed.Count; i++) batch[i].Done.TrySetResult(landed[i].OffsetBytes);
        batch.RemoveRange(0, landed.Count);
    }

    private static BlockdException Failed(BlockdException e) => new(e.Code, e.Status, "an append in front of it failed: " + e.Message, e);
}
