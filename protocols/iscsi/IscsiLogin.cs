using System.Buffers;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi;

/// <summary>What a login agreed on; everything that full feature phase needs.</summary>
/// <param name="Login">The machine that agreed; writes the last response.</param>
/// <param name="Connection">The connection.</param>
/// <param name="Leftover">Bytes that came behind the last request.</param>
public sealed record IscsiNegotiated(LoginMachine Login, IConnection Connection, byte[] Leftover);

/// <summary>
/// Runs the login of one connection. Lives on the loop that accepted it. Owns the connection until it answers a result;
/// when it answers null it has closed it. Nothing that a peer sends makes it throw. A peer costs at most 16 KiB here, plus
/// the text that it continues.
/// </summary>
public sealed class IscsiLogin
{
    private readonly ILoop _loop;
    private readonly IConnection _connection;
    private readonly IscsiOptions _options;
    private readonly LoginMachine _machine;
    private readonly LoopTimer _deadline;
    private readonly SendBatch _batch = new();
    private readonly ArrayBufferWriter<byte> _out = new();
    private readonly byte[] _input = new byte[IscsiWire.BhsSize + IscsiWire.LoginDataBytesMax];
    private int _end;
    private bool _stopping;

    /// <summary>Prepares; nothing is read before <see cref="RunAsync"/>.</summary>
    public IscsiLogin(ILoop loop, IConnection connection, IIscsiTargets targets, IscsiOptions options)
    {
        (_loop, _connection, _options) = (loop, connection, options);
        _machine = new LoginMachine(targets, options, loop.Random, connection.Peer);
        _deadline = loop.CreateTimer(() => Cut("the login took too long"));
    }

    /// <summary>Why there was no result, one line.</summary>
    public string? EndReason { get; private set; }

    /// <summary>The credentials were wrong: for the limit of failures per address.</summary>
    public bool WereCredentialsWrong { get; private set; }

    /// <summary>From now on a login is refused as unavailable.</summary>
    public void RequestStop() => _stopping = true;

    /// <summary>Ends the connection.</summary>
    public void Cut(string reason)
    {
        EndReason ??= reason;
        _connection.Close();
    }

    /// <summary>Runs the login; null when it ended without an agreement.</summary>
    public async ValueTask<IscsiNegotiated?> RunAsync()
    {
        _deadline.Start(_options.LoginNanos);
        bool isAgreed = await NegotiateAsync();
        _deadline.Stop();
        if (isAgreed) return new IscsiNegotiated(_machine, _connection, _input[.._end]);
        EndReason ??= _machine.Fault ?? "the initiator left during login";
        _connection.Close();
        return null;
    }

    private async ValueTask<bool> NegotiateAsync()
    {
        while (true)
        {
            if (!await FillAsync(IscsiWire.BhsSize)) return false;
            IscsiHeader header = IscsiHeader.Read(_input);
            if (header.Opcode != IscsiOpcode.LoginRequest && _machine.InitiatorName.Length == 0)
                return Fail("the first PDU is no login request");
            if (header.AhsBytes != 0 || header.DataBytes > IscsiWire.LoginDataBytesMax)
                return Fail("a login request is too long");
            int length = IscsiWire.BhsSize + header.PaddedDataBytes;
            if (!await FillAsync(length)) return false;
            _out.Clear();
            LoginVerdict verdict = LoginVerdict.Agreed;
            if (!_stopping)
            {
                verdict = _machine.OnPdu(
                    _input.AsSpan(0, IscsiWire.BhsSize), _input.AsSpan(IscsiWire.BhsSize, header.DataBytes), _out);
            }

            _input.AsSpan(length, _end - length).CopyTo(_input);
            _end -= length;
            if (_stopping) return Fail("shutting down");
            if (verdict == LoginVerdict.Agreed) return true;
            if (verdict == LoginVerdict.RefusedForCredentials)
            {
                WereCredentialsWrong = true;
                await _loop.DelayAsync(_options.AuthenticationFailureNanos);
            }

            if (_out.WrittenCount > 0 && !await SendAsync()) return false;
            if (verdict == LoginVerdict.Continue) continue;
            _connection.ShutdownSend();
            return false;
        }
    }

    private bool Fail(string reason)
    {
        EndReason ??= reason;
        return false;
    }

    private async ValueTask<bool> FillAsync(int count)
    {
        while (_end < count)
        {
            int got = await _connection.ReceiveAsync(_input.AsMemory(_end));
            if (got <= 0) return false;
            _end += got;
        }

        return true;
    }

    private async ValueTask<bool> SendAsync()
    {
        _batch.Clear();
        _batch.Add(_out.WrittenMemory);
        int answer = await _connection.SendAsync(_batch);
        _batch.Clear();
        return answer >= 0;
    }
}
