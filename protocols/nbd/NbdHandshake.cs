using System.Buffers;
using System.Buffers.Binary;
using System.Text;
using BlockServer.Core;

namespace BlockServer.Protocols.Nbd;

/// <summary>
/// The fixed newstyle handshake of one connection, server side. Lives on the loop that accepted it. Owns the connection
/// until it answers a result; when it answers null it has closed it. Nothing that a peer sends makes it throw.
/// </summary>
public sealed class NbdHandshake
{
    private const int StringBytesMax = 4096;

    // Before authentication a peer costs at most 8 KiB in all: the buffer begins small and never holds more than the longest
    // name with what belongs to it; the data of a longer option is read away.
    private const int FirstBufferBytes = 512;
    // No export has a longer name, so a longer one is valid, unknown, and not worth decoding.
    private const int NameBytesMax = 1024;
    private const string NobodysName = "\0"; // refused when a peer sends it

    // So many ids fit into the payload that a BLOCK_STATUS may have.
    private const int ContextsMax = 46;

    private const int OptionDataMax = StringBytesMax + 256;
    private const int SendBytes = 1024;

    private const int SizeMin = 1;
    private const int SizePreferred = Units.BlockBytes;

    private readonly ILoop _loop;
    private readonly INbdExports _exports;
    private readonly NbdOptions _options;
    private readonly LoopTimer _deadline;
    private readonly SendBatch _batch = new(1);
    private readonly ArrayBufferWriter<byte> _out = new();

    private IConnection _connection;
    private byte[] _buffer = new byte[FirstBufferBytes];
    private int _start, _end;
    private bool _fixed, _noZeroes, _isTls, _stopping;
    private string? _identity;
    private NbdReplyMode _mode;
    private string? _contextExport; // the export for which metadata contexts were chosen
    private IReadOnlyList<NbdContext> _contexts = [];

    /// <summary>Prepares; nothing is sent before <see cref="RunAsync"/>.</summary>
    public NbdHandshake(ILoop loop, IConnection connection, INbdExports exports, NbdOptions options)
    {
        (_loop, _connection, _exports, _options, _identity) = (loop, connection, exports, options, options.DefaultIdentity);
        _deadline = loop.CreateTimer(() =>
        {
            EndReason ??= "the handshake took too long";
            _connection.Close();
        });
    }

    /// <summary>Why there was no result, one line.</summary>
    public string? EndReason { get; private set; }

    /// <summary>It ended because TLS could not be agreed on: a wrong certificate, or something that is not TLS.</summary>
    public bool FailedToProve { get; private set; }

    /// <summary>From now on every option is answered ERR_SHUTDOWN.</summary>
    public void RequestStop() => _stopping = true;

    /// <summary>Ends the connection.</summary>
    public void Cut(string reason)
    {
        EndReason ??= reason;
        _connection.Close();
    }

    /// <summary>Runs the handshake; null when it ended without entering transmission.</summary>
    public async ValueTask<NbdNegotiated?> RunAsync()
    {
        _deadline.Start(_options.HandshakeNanos);
        NbdNegotiated? result = await NegotiateAsync();
        _deadline.Stop();
        if (result is not null) return result;
        EndReason ??= "the client left during the handshake";
        _connection.Close();
        return null;
    }

    private async ValueTask<NbdNegotiated?> NegotiateAsync()
    {
        Put64(NbdWire.Magic);
        Put64(NbdWire.OptionMagic);
        Put16(3); // FIXED_NEWSTYLE, NO_ZEROES
        if (!await SendAsync() || !await FillAsync(4)) return null;
        uint flags = Take32();
        if ((flags & ~3u) != 0) return Fail("unknown client flags");
        _fixed = (flags & 1) != 0;
        _noZeroes = (flags & 2) != 0;

        for (int count = 0; count < _options.HandshakeOptionsMax; count++)
        {
            if (!await FillAsync(16)) return null;
            if (Take64() != NbdWire.OptionMagic) return Fail("wrong option magic");
            uint option = Take32();
            uint length = Take32();
            if (length > (uint)_options.OptionBytesMax) return Fail("an option is too long");
            if (!_fixed && option != (uint)NbdOption.ExportName) return Fail("options need the FIXED_NEWSTYLE flag");
            bool isTooBig = length > OptionDataMax;
            if (isTooBig ? !await DrainAsync((int)length) : !await FillAsync((int)length)) return null;
            ReadOnlyMemory<byte> data = isTooBig ? default : Take((int)length);
            (bool goesOn, NbdNegotiated? result) = await AnswerAsync(option, data, isTooBig);
            if (!goesOn) return result;
            if (!await SendAsync()) return null;
        }

        return Fail("too many options");
    }

    private async ValueTask<(bool GoesOn, NbdNegotiated? Result)> AnswerAsync(uint option, ReadOnlyMemory<byte> data, bool isTooBig)
    {
        if (_stopping)
        {
            if (option == (uint)NbdOption.ExportName) return (false, Fail("shutting down"));
            Reply(option, NbdReply.ErrShutdown, "the server is shutting down");
            return (true, null);
        }

        bool isBare = (NbdOption)option is NbdOption.StartTls or NbdOption.Abort;
        if (_options.TlsMode == NbdTlsMode.Required && !_isTls && !isBare)
        {
            if (option == (uint)NbdOption.ExportName) return (false, Fail("TLS is required"));
            Reply(option, NbdReply.ErrTlsReqd, "use STARTTLS first");
            return (true, null);
        }

        if (isTooBig)
        {
            if (option == (uint)NbdOption.ExportName) return (false, Fail("bad export name"));
            Reply(option, Enum.IsDefined((NbdOption)option) ? NbdReply.ErrTooBig : NbdReply.ErrUnsup, "too much data");
            return (true, null);
        }

        switch ((NbdOption)option)
        {
            case NbdOption.ExportName:
                return (false, await EnterByNameAsync(data));
            case NbdOption.Abort:
                Reply(option, NbdReply.Ack);
                await SendAsync();
                return (false, Fail("the client aborted"));
            case NbdOption.List:
                return (await ListAsync(option, data), null);
            case NbdOption.StartTls:
                return (await StartTlsAsync(option, data), null);
            case NbdOption.Info or NbdOption.Go:
                NbdNegotiated? result = await DescribeAsync(option, data);
                return (result is null, result);
            case NbdOption.StructuredReply or NbdOption.ExtendedHeaders:
                ChooseMode(option, data);
                return (true, null);
            case NbdOption.ListMetaContext or NbdOption.SetMetaContext:
                return (await ContextsAsync(option, data), null);
            default:
                Reply(option, NbdReply.ErrUnsup, "unknown option");
                return (true, null);
        }
    }

    private async ValueTask<NbdNegotiated?> EnterByNameAsync(ReadOnlyMemory<byte> data)
    {
        string? name = TextOf(data.Span);
        if (name is null) return Fail("bad export name");
        NbdExport? export = await _exports.FindAsync(name, _identity);
        if (export is null || (export.RequiresTls && !_isTls)) return Fail("unknown export");
        NbdNegotiated result = Enter(name, export);
        Put64(export.SizeBytes);
        Put16((ushort)FlagsOf(export, result.Contexts.Count > 0));
        if (!_noZeroes) _out.Write(new byte[124]);
        return await SendAsync() ? result : null;
    }

    private async ValueTask<bool> ListAsync(uint option, ReadOnlyMemory<byte> data)
    {
        if (data.Length != 0)
        {
            Reply(option, NbdReply.ErrInvalid, "LIST takes no data");
        }
        else if (!_options.AllowList)
        {
            Reply(option, NbdReply.ErrPolicy, "listing is switched off");
        }
        else
        {
            foreach (NbdListing line in _exports.List(_identity))
            {
                byte[] name = Encoding.UTF8.GetBytes(line.Name);
                byte[] description = Encoding.UTF8.GetBytes(line.Description);
                ReplyHeader(option, NbdReply.Server, 4 + name.Length + description.Length);
                Put32((uint)name.Length);
                _out.Write(name);
                _out.Write(description);
                if (_out.WrittenCount >= SendBytes && !await SendAsync()) return false;
            }

            Reply(option, NbdReply.Ack);
        }

        return true;
    }

    private async ValueTask<bool> StartTlsAsync(uint option, ReadOnlyMemory<byte> data)
    {
        if (data.Length != 0 || _isTls)
        {
            Reply(option, NbdReply.ErrInvalid, _isTls ? "TLS is already on" : "STARTTLS takes no data");
            return true;
        }

        if (_options.TlsMode == NbdTlsMode.None || _options.Tls is null)
        {
            Reply(option, NbdReply.ErrPolicy, "TLS is not configured");
            return true;
        }

        if (_start != _end)
        {
            // Whatever came before TLS could have been put there by anybody on the path.
            Fail("data was sent ahead of TLS");
            return false;
        }

        Reply(option, NbdReply.Ack);
        if (!await SendAsync()) return false;
        TlsResult tls = await _options.Tls.UpgradeAsync(_connection);
        if (tls.Connection is null)
        {
            FailedToProve = EndReason is null;
            Fail("TLS failed: " + tls.Failure);
            return false;
        }

        (_connection, _identity, _isTls) = (tls.Connection, tls.PeerSubject ?? _options.DefaultIdentity, true);
        (_mode, _contextExport) = (NbdReplyMode.Simple, null); // STARTTLS forgets what was agreed in the clear
        return true;
    }

    private async ValueTask<NbdNegotiated?> DescribeAsync(uint option, ReadOnlyMemory<byte> data)
    {
        // name length u32 | name | count u16 | count * information type u16
        string? name = null;
        int rest = 0;
        NbdReply fault = data.Length < 6 ? NbdReply.ErrInvalid : ReadName(data.Span, out name, out rest);
        int count = fault == 0 && data.Length - rest >= 2 ? BinaryPrimitives.ReadUInt16BigEndian(data.Span[rest..]) : -1;
        if (fault == 0 && (count < 0 || data.Length - rest != 2 + 2 * count)) fault = NbdReply.ErrInvalid;
        if (fault != 0)
        {
            Reply(option, fault, "malformed INFO or GO");
            return null;
        }

        NbdExport? export = await _exports.FindAsync(name!, _identity);
        if (!MayUse(option, name!, export)) return null;
        ReplyHeader(option, NbdReply.Info, 12);
        Put16(0);
        Put64(export!.SizeBytes);
        NbdNegotiated result = Enter(name!, export);
        Put16((ushort)FlagsOf(export, result.Contexts.Count > 0));
        ReplyHeader(option, NbdReply.Info, 14);
        Put16(3);
        Put32(SizeMin);
        Put32(SizePreferred);
        Put32(Units.RequestBytesMax);
        bool wantsName = false, wantsDescription = false;
        for (int i = 0; i < count; i++)
        {
            ushort type = BinaryPrimitives.ReadUInt16BigEndian(data.Span[(rest + 2 + 2 * i)..]);
            wantsName |= type == 1;
            wantsDescription |= type == 2;
        }

        if (wantsName) PutInfoText(option, 1, export.Name);
        if (wantsDescription && export.Description.Length > 0) PutInfoText(option, 2, export.Description);
        Reply(option, NbdReply.Ack);
        if (option != (uint)NbdOption.Go) return null;
        return await SendAsync() ? result : null;
    }

    private void PutInfoText(uint option, ushort type, string text)
    {
        byte[] bytes = Encoding.UTF8.GetBytes(text);
        ReplyHeader(option, NbdReply.Info, 2 + bytes.Length);
        Put16(type);
        _out.Write(bytes);
    }

    private void ChooseMode(uint option, ReadOnlyMemory<byte> data)
    {
        NbdReplyMode wanted = option == (uint)NbdOption.ExtendedHeaders ? NbdReplyMode.Extended : NbdReplyMode.Structured;
        if (data.Length != 0)
        {
            Reply(option, NbdReply.ErrInvalid, "this option takes no data");
        }
        else if (_mode == wanted)
        {
            Reply(option, NbdReply.ErrInvalid, "already negotiated");
        }
        else if (_mode == NbdReplyMode.Extended)
        {
            Reply(option, NbdReply.ErrExtHeaderReqd, "extended headers are already negotiated");
        }
        else
        {
            _mode = wanted;
            Reply(option, NbdReply.Ack);
        }
    }

    private async ValueTask<bool> ContextsAsync(uint option, ReadOnlyMemory<byte> data)
    {
        // name length u32 | name | query count u32 | count * (length u32 | query)
        bool isSet = option == (uint)NbdOption.SetMetaContext;
        if (isSet) _contextExport = null; // a failed choice clears the earlier one
        if (_mode == NbdReplyMode.Simple)
        {
            Reply(option, NbdReply.ErrInvalid, "STRUCTURED_REPLY first");
            return true;
        }

        string? name = null;
        int rest = 0;
        NbdReply fault = data.Length < 8 ? NbdReply.ErrInvalid : ReadName(data.Span, out name, out rest);
        var queries = new List<string>();
        if (fault == 0) fault = ReadQueries(data.Span[rest..], queries);
        if (fault != 0)
        {
            Reply(option, fault, "malformed metadata context option");
            return true;
        }

        NbdExport? export = await _exports.FindAsync(name!, _identity);
        if (!MayUse(option, name!, export)) return true;
        List<NbdContext> chosen = await ChooseAsync(export!, queries, isSet);
        if (chosen.Count > ContextsMax && isSet)
        {
            Reply(option, NbdReply.ErrTooBig, "too many metadata contexts at a time");
            return true;
        }

        for (int i = 0; i < chosen.Count; i++)
        {
            byte[] context = Encoding.UTF8.GetBytes(chosen[i].Name);
            ReplyHeader(option, NbdReply.MetaContext, 4 + context.Length);
            Put32(isSet ? NbdWire.FirstContextId + (uint)i : 0);
            _out.Write(context);
            if (_out.WrittenCount >= SendBytes && !await SendAsync()) return false;
        }

        if (isSet && chosen.Count > 0) (_contextExport, _contexts) = (name, chosen);
        Reply(option, NbdReply.Ack);
        return true;
    }

    /// <summary>What the queries name, each once, in the order of the export. SET takes whole names; LIST takes also a namespace
    /// or <c>qemu:dirty-bitmap:</c> for all of it, and no query for everything.</summary>
    private static async ValueTask<List<NbdContext>> ChooseAsync(NbdExport export, List<string> queries, bool isSet)
    {
        var chosen = new List<NbdContext>();
        if (IsAsked(NbdWire.BaseAllocation)) chosen.Add(NbdContext.BaseAllocation);
        bool isOther = queries.Count == 0 ? !isSet : queries.Any(q => q.StartsWith("qemu:", StringComparison.Ordinal));
        if (export.Contexts is null || !isOther) return chosen;
        foreach (NbdContext context in await export.Contexts.ListAsync())
        {
            if (IsAsked(context.Name)) chosen.Add(context);
        }

        return chosen;

        bool IsAsked(string context)
        {
            if (queries.Count == 0) return !isSet;
            foreach (string query in queries)
            {
                if (query == context) return true;
                bool isPattern = !isSet && (query is "base:" or "qemu:" or "qemu:dirty-bitmap:");
                if (isPattern && context.StartsWith(query, StringComparison.Ordinal)) return true;
            }

            return false;
        }
    }

    private static NbdReply ReadQueries(ReadOnlySpan<byte> data, List<string> queries)
    {
        if (data.Length < 4) return NbdReply.ErrInvalid;
        uint count = BinaryPrimitives.ReadUInt32BigEndian(data);
        data = data[4..];
        for (uint i = 0; i < count; i++)
        {
            if (data.Length < 4) return NbdReply.ErrInvalid;
            uint length = BinaryPrimitives.ReadUInt32BigEndian(data);
            if (length > (uint)(data.Length - 4)) return NbdReply.ErrInvalid;
            if (length > StringBytesMax) return NbdReply.ErrTooBig;
            // What is no name of ours need not be text.
            queries.Add(TextOf(data.Slice(4, (int)length)) ?? NobodysName);
            data = data[(4 + (int)length)..];
        }

        return data.IsEmpty ? 0 : NbdReply.ErrInvalid;
    }

    private bool MayUse(uint option, string name, NbdExport? export)
    {
        if (export is null)
        {
            // Clients that keep the reason to themselves must not say of what is there that it is not.
            string? reason = _exports.WhyNot(name, _identity);
            Reply(option, reason is null ? NbdReply.ErrUnknown : NbdReply.ErrPolicy, reason ?? "no such export");
            return false;
        }

        if (!export.RequiresTls || _isTls) return true;
        Reply(option, NbdReply.ErrTlsReqd, "this export requires TLS");
        return false;
    }

    private NbdNegotiated Enter(string name, NbdExport export) => new()
    {
        Connection = _connection,
        Export = export,
        Identity = _identity,
        IsTls = _isTls,
        Mode = _mode,
        Contexts = string.Equals(_contextExport, name, StringComparison.Ordinal) ? _contexts : [],
        Leftover = _buffer.AsSpan(_start, _end - _start).ToArray(),
    };

    private NbdTransmissionFlags FlagsOf(NbdExport export, bool hasContext)
    {
        NbdTransmissionFlags flags = NbdTransmissionFlags.HasFlags | NbdTransmissionFlags.SendFlush
            | NbdTransmissionFlags.SendFua | NbdTransmissionFlags.SendCache;
        flags |= export.IsReadOnly
            ? NbdTransmissionFlags.ReadOnly
            : NbdTransmissionFlags.SendTrim | NbdTransmissionFlags.SendWriteZeroes | NbdTransmissionFlags.SendFastZero;
        if (export.IsRotational) flags |= NbdTransmissionFlags.Rotational;
        if (export.CanMultiConn) flags |= NbdTransmissionFlags.CanMultiConn;
        if (_mode != NbdReplyMode.Simple) flags |= NbdTransmissionFlags.SendDontFragment;
        if (_mode == NbdReplyMode.Extended && hasContext) flags |= NbdTransmissionFlags.BlockStatusPayload;
        return flags;
    }

    private static NbdReply ReadName(ReadOnlySpan<byte> data, out string? name, out int rest)
    {
        uint length = BinaryPrimitives.ReadUInt32BigEndian(data);
        (name, rest) = (null, 0);
        if (length > (uint)(data.Length - 4)) return NbdReply.ErrInvalid;
        if (length > StringBytesMax) return NbdReply.ErrTooBig;
        name = TextOf(data.Slice(4, (int)length));
        rest = 4 + (int)length;
        return name is null ? NbdReply.ErrInvalid : 0;
    }

    /// <summary>The string, or null when it is too long, not UTF-8, or holds a NUL.</summary>
    private static string? TextOf(ReadOnlySpan<byte> bytes) =>
        bytes.Length > StringBytesMax || !System.Text.Unicode.Utf8.IsValid(bytes) || bytes.Contains((byte)0) ? null
        : bytes.Length > NameBytesMax ? NobodysName
        : Encoding.UTF8.GetString(bytes);

    private NbdNegotiated? Fail(string reason)
    {
        EndReason ??= reason;
        return null;
    }

    private async ValueTask<bool> FillAsync(int bytes)
    {
        if (_end - _start >= bytes) return true;
        byte[] target = bytes > _buffer.Length ? new byte[bytes] : _buffer;
        Buffer.BlockCopy(_buffer, _start, target, 0, _end - _start);
        (_buffer, _end, _start) = (target, _end - _start, 0);
        while (_end < bytes)
        {
            int count = await _connection.ReceiveAsync(_buffer.AsMemory(_end));
            if (count <= 0) return false;
            _end += count;
        }

        return true;
    }

    /// <summary>Reads exactly so many bytes away.</summary>
    private async ValueTask<bool> DrainAsync(int bytes)
    {
        while (true)
        {
            int here = Math.Min(bytes, _end - _start);
            _start += here;
            bytes -= here;
            if (bytes == 0) return true;
            (_start, _end) = (0, 0);
            int count = await _connection.ReceiveAsync(_buffer);
            if (count <= 0) return false;
            _end = count;
        }
    }

    private async ValueTask<bool> SendAsync()
    {
        if (_out.WrittenCount == 0) return true;
        _batch.Clear();
        _batch.Add(_out.WrittenMemory);
        bool isSent = await _connection.SendAsync(_batch) >= 0;
        _out.ResetWrittenCount();
        return isSent;
    }

    private void Reply(uint option, NbdReply type, string text = "")
    {
        byte[] bytes = Encoding.UTF8.GetBytes(text);
        ReplyHeader(option, type, bytes.Length);
        _out.Write(bytes);
    }

    private void ReplyHeader(uint option, NbdReply type, int lengthBytes)
    {
        Put64(NbdWire.OptionReplyMagic);
        Put32(option);
        Put32((uint)type);
        Put32((uint)lengthBytes);
    }

    private uint Take32() => BinaryPrimitives.ReadUInt32BigEndian(_buffer.AsSpan((_start += 4) - 4));

    private ulong Take64() => BinaryPrimitives.ReadUInt64BigEndian(_buffer.AsSpan((_start += 8) - 8));

    /// <summary>Valid until the next fill.</summary>
    private ReadOnlyMemory<byte> Take(int count) => _buffer.AsMemory((_start += count) - count, count);

    private void Put16(ushort value)
    {
        Span<byte> bytes = stackalloc byte[2];
        BinaryPrimitives.WriteUInt16BigEndian(bytes, value);
        _out.Write(bytes);
    }

    private void Put32(uint value)
    {
        Span<byte> bytes = stackalloc byte[4];
        BinaryPrimitives.WriteUInt32BigEndian(bytes, value);
        _out.Write(bytes);
    }

    private void Put64(ulong value)
    {
        Span<byte> bytes = stackalloc byte[8];
        BinaryPrimitives.WriteUInt64BigEndian(bytes, value);
        _out.Write(bytes);
    }
}
