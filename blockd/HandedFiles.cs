using System.Collections.Concurrent;
using System.Net.Sockets;
using BlockServer.Io;
using Microsoft.Win32.SafeHandles;

namespace BlockServer.Blockd;

/// <summary>
/// Takes files that programs of this machine hand over, so that exports and imports go between store and file without a connection
/// between (docs/api.md). Whoever connects to the socket sends a ticket of <see cref="TicketBytes"/> bytes with the file; one byte comes back, 1
/// when it is kept. A request of the admin API names the ticket and takes the file; what nobody has taken goes with its connection,
/// or after a minute.
/// What is done with a file is that request's right alone: here nobody gains anything. Thread-safe.
/// </summary>
internal sealed class HandedFiles : IAsyncDisposable
{
    /// <summary>Bytes of a ticket, which its sender draws.</summary>
    public const int TicketBytes = 16;

    /// <summary>Connections at one time; more are turned away, and their senders send a stream.</summary>
    public const int ConnectionsMax = 32;

    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(10), s_keeping = TimeSpan.FromMinutes(1);

    private readonly Socket _listener;
    private readonly string _path;
    private readonly ConcurrentDictionary<string, SafeFileHandle> _files = new(StringComparer.Ordinal);
    private readonly CancellationTokenSource _ended = new();
    private readonly Task _accepting;
    private int _connections;

    private HandedFiles(Socket listener, string path)
    {
        (_listener, _path) = (listener, path);
        _accepting = AcceptAsync();
    }

    /// <summary>Listens at <paramref name="path"/>, in a directory that belongs to the daemon; null with a reason when that cannot be.</summary>
    public static HandedFiles? TryOpen(string path, out string? reason)
    {
        var listener = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        try
        {
            File.Delete(path);
            listener.Bind(new UnixDomainSocketEndPoint(path));
            File.SetUnixFileMode(path, UnixFileMode.UserRead | UnixFileMode.UserWrite);
            listener.Listen(ConnectionsMax);
            reason = null;
            return new HandedFiles(listener, path);
        }
        catch (Exception e) when (e is SocketException or IOException or UnauthorizedAccessException or ArgumentException)
        {
            listener.Dispose();
            reason = e.Message;
            return null;
        }
    }

    /// <summary>Files that nobody has taken yet.</summary>
    public int Count => _files.Count;

    /// <summary>The file that was handed over with this ticket, in hexadecimal, which the caller then owns; null: there is none.</summary>
    public SafeFileHandle? Take(string ticket) => _files.TryRemove(ticket, out SafeFileHandle? file) ? file : null;

    /// <inheritdoc/>
    public async ValueTask DisposeAsync()
    {
        await _ended.CancelAsync();
        _listener.Dispose();
        await _accepting;
        foreach (string ticket in _files.Keys) Take(ticket)?.Dispose();
        File.Delete(_path);
        _ended.Dispose();
    }

    private async Task AcceptAsync()
    {
        try
        {
            while (true)
            {
                Socket client = await _listener.AcceptAsync(_ended.Token);
                if (Interlocked.Increment(ref _connections) <= ConnectionsMax)
                {
                    _ = ServeAsync(client);
                    continue;
                }

                Interlocked.Decrement(ref _connections);
                client.Dispose();
            }
        }
        catch (Exception e) when (e is SocketException or ObjectDisposedException or OperationCanceledException)
        {
            // The end.
        }
    }

    private async Task ServeAsync(Socket client)
    {
        string? kept = null;
        try
        {
            using (client)
            using (var patience = CancellationTokenSource.CreateLinkedTokenSource(_ended.Token))
            {
                patience.CancelAfter(s_patience);
                await client.ReceiveAsync(Memory<byte>.Empty, patience.Token); // until something is there
                var ticket = new byte[TicketBytes];
                int count = HandedFile.Receive(client, ticket, out SafeFileHandle? file);
                string name = Convert.ToHexStringLower(ticket);
                bool isKept = file is not null && count == TicketBytes && _files.TryAdd(name, file);
                if (isKept) kept = name;
                else file?.Dispose();
                await client.SendAsync(new byte[] { isKept ? (byte)1 : (byte)0 }, patience.Token);
                // Nothing more is to come: this ends when the sender leaves, or has not asked for so long.
                patience.CancelAfter(s_keeping);
                if (isKept) await client.ReceiveAsync(ticket.AsMemory(0, 1), patience.Token);
            }
        }
        catch (Exception e) when (e is SocketException or ObjectDisposedException or OperationCanceledException)
        {
            // Its sender has gone, or was too slow.
        }
        finally
        {
            if (kept is not null) Take(kept)?.Dispose();
            Interlocked.Decrement(ref _connections);
        }
    }
}
